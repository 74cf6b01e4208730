"""Generation on CUDA: one token as a CUDA graph, sampled on the device, some tokens ahead."""
