"""Every Triton kernel, and what kernels share."""
