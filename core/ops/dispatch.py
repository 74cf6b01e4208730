"""The questions by which an operation chooses its path, and the size of the device."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None and torch.version.hip is None
"""The kernels rely on warps of 32 threads, and some contain PTX."""

ALIGNED = 8
"""How many 16-bit numbers fit in 16 bytes. A GPU's fastest reads need rows of a multiple of this."""


DECODING = "decoding"
"""Reading and sampling one token at a time: the kernels of a graph decoder."""
_left_out: tuple[str, ...] = ()  # torch.compile sees through a tuple, and compiles again where it changes


def takes_triton(tensor: Tensor, operation: str) -> bool:
    """True for a tensor on CUDA in a type the kernels know, where triton is installed.

    Not for an operation that was wrong on this GPU (`core/ops/self_check.py`).
    """
    return HAS_TRITON and tensor.is_cuda and tensor.dtype != torch.float64 and operation not in _left_out


def leave_out(operations: Iterable[str]) -> None:
    """Have these operations take their plain path from now on, and only these."""
    global _left_out
    _left_out = tuple(sorted(operations))


def product_type(x: Tensor) -> torch.dtype:
    """The type of products with x on CUDA: autocast's if autocast is on, otherwise x's."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def to_autocast_type(x: Tensor) -> Tensor:
    """x in autocast's type for its device if autocast is on, otherwise x unchanged."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


@functools.cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 for a CPU, where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
