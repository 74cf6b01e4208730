"""How well a checkpoint predicts texts, whichever they are: `mamba-tui eval`."""
