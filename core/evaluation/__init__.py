"""How well a checkpoint predicts texts of any kind: `mamba-tui eval`."""
