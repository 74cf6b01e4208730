"""The operating system: files, processes, hardware. No torch."""
