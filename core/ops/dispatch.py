"""Whether an operation takes its Triton path, and how wide the device is."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""The kernels count on warps of 32 threads, and some speak PTX."""

ALIGNED = 8
"""16-bit numbers in 16 bytes: the fastest reads of a GPU take rows of a multiple of so many."""


def takes_triton(tensor: Tensor) -> bool:
    """True for a tensor on CUDA in a type the kernels know, where triton is installed."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64


def product_type(x: Tensor) -> torch.dtype:
    """What products with x on CUDA are computed in: autocast's type where that is on."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def to_autocast_type(x: Tensor) -> Tensor:
    """x in autocast's type for its device where autocast is on, else x as it is."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


@functools.cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a CPU, on which kernels are interpreted, counts as one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
