"""Everything of mamba-tui that runs without a screen."""
