"""What a run is told: keys, checks, files and presets. No torch."""
