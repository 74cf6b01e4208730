"""Operations as plain functions. Each has a torch path and, on CUDA, may have a Triton path."""
