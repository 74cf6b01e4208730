"""Whether an operation takes its Triton path, and how wide the device is."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""The kernels count on warps of 32 lanes, and some speak PTX."""


def takes_triton(tensor: Tensor) -> bool:
    """True for a tensor on CUDA in a type the kernels know, where triton is installed."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64


def takes_feed_forward(x: Tensor, next_width: int) -> bool:
    """True where a feed-forward layer from x (..., C) is one operation: bfloat16, where autocast makes it so,
    on a GPU with a tensor copy engine, which reads rows that begin at a multiple of 16 bytes.
    """
    if not (HAS_TRITON and x.is_cuda and x.shape[-1] % 8 == 0 and next_width % 8 == 0):
        return False
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return kind == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major >= 9


@functools.cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a CPU, on which kernels are interpreted, counts as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
