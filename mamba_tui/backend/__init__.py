"""What the console knows of runs and other processes. No widgets."""
