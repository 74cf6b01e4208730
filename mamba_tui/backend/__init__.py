"""The console's access to runs and other processes. No widgets."""
