"""The trainer process, and everything that one training run needs."""
