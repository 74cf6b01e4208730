"""Every Triton kernel, and the code that kernels share."""
