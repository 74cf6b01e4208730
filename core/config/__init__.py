"""Configuration: keys, checks, files, presets and estimates. No torch."""
