"""The trainer process, and everything one training run needs."""
