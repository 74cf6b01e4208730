"""Everything in mamba-tui that runs without a screen."""
