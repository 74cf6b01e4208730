"""Whether an operation takes its Triton path."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""The kernels count on warps of 32 lanes, and some speak PTX."""


def takes_triton(tensor: Tensor) -> bool:
    """True for a tensor on CUDA in a type the kernels know, where triton is installed."""
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64
