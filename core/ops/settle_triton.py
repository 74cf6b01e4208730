"""Copies that happen only if a flag on the device says so: how a captured step takes its new state."""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 2048


@triton.jit
def settle_kernel(new, old, good, length, new_row, old_row, PIECE: tl.constexpr):
    """Copy a piece of a row of `new` over that of `old` if `good`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    stop = tl.where(tl.load(good) != 0, length, 0)
    value = tl.load(new + row * new_row + at, mask=at < stop, other=0)
    tl.store(old + row * old_row + at, value.to(old.dtype.element_ty), mask=at < stop)


def settle(new: Tensor, old: Tensor, good: Tensor) -> None:
    """old = new where `good` (scalar bool) holds, in place; shapes are equal, types may differ."""
    new, old = _as_rows(new, old)
    grid = (old.shape[0], triton.cdiv(old.shape[1], PIECE))
    settle_kernel[grid](
        new, old, good.view(torch.uint8), old.shape[1], new.stride(0), old.stride(0), PIECE=PIECE, num_warps=4
    )


def _as_rows(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Both as matrices with contiguous rows, without a copy of `old`."""
    if not old.is_contiguous():
        # A hidden state (B, D, N) that lies as (B, N, D).
        new, old = new.transpose(-1, -2), old.transpose(-1, -2)
    if new.is_contiguous() or new.ndim != 4:
        return new.reshape(1, -1), old.view(1, -1)
    if new.stride(3) == 1 and new.stride(2) == new.shape[3] and new.stride(0) == new.shape[1] * new.stride(1):
        # The newest slots of keys (B, H, S, E).
        flat = new.as_strided((new.shape[0] * new.shape[1], new[0, 0].numel()), (new.stride(1), 1))
        return flat, old.view(flat.shape)
    return new.reshape(1, -1), old.view(1, -1)
