"""Generation on CUDA: one token is a CUDA graph, sampled on the device, some tokens ahead."""
