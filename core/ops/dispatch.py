"""Whether an operation takes its Triton path, and how wide the device is."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""The kernels count on warps of 32 lanes, and some speak PTX."""

ALIGNED = 8
"""16-bit numbers in 16 bytes: rows of so many, or a multiple, are what the fastest reads of a GPU take."""


def takes_triton(tensor: Tensor) -> bool:
    """True for a tensor on CUDA in a type the kernels know, where triton is installed."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64


def product_type(x: Tensor) -> torch.dtype:
    """What products with x on CUDA are computed in: autocast's type where that is on."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def takes_feed_forward(x: Tensor, next_width: int) -> bool:
    """True where a feed-forward layer from x (..., C) is one operation: bfloat16, where autocast makes it so,
    on a GPU with a tensor copy engine, which reads rows that begin at a multiple of 16 bytes.
    """
    if not (HAS_TRITON and x.is_cuda and x.shape[-1] % ALIGNED == 0 and next_width % ALIGNED == 0):
        return False
    return product_type(x) == torch.bfloat16 and torch.cuda.get_device_properties(x.device).major >= 9


@functools.cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a CPU, on which kernels are interpreted, counts as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
