"""The fast parts behind plain functions: each op has a torch path and, on CUDA, a Triton path."""
