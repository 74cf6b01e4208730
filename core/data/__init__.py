"""From text files to batches. No torch."""
