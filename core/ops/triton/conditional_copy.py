"""Copies that happen only if a flag on the device is set: how a captured step accepts its new state."""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECE = 4096
MOST = 16
"""The most tensors per launch."""


@triton.jit
def conditional_copy_kernel(
    new, old, good, lengths, new_rows, old_rows, counts, COUNT: tl.constexpr, PIECE: tl.constexpr
):
    """Copy a piece of a row from one of `new` to the same one of `old`, if `good`."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * PIECE + tl.arange(0, PIECE)
    wanted = tl.load(good) != 0
    for i in tl.static_range(COUNT):
        if tl.program_id(2) == i:
            stop = tl.where(wanted & (row < counts[i]), lengths[i], 0)
            value = tl.load(new[i] + row * new_rows[i] + at, mask=at < stop, other=0)
            tl.store(old[i] + row * old_rows[i] + at, value.to(old[i].dtype.element_ty), mask=at < stop)


def conditional_copy(new: Sequence[Tensor], old: Sequence[Tensor], good: Tensor) -> None:
    """Copy each `new` to its `old` in place if `good` (scalar bool) is true.

    Shapes are equal, types may differ.
    """
    pairs = sorted((_as_rows(*pair) for pair in zip(new, old)), key=lambda pair: pair[1].shape)
    for first in range(0, len(pairs), MOST):
        some = pairs[first : first + MOST]
        news, olds = (tuple(column) for column in zip(*some))
        shapes = [tensor.shape for tensor in olds]
        grid = (
            max(rows for rows, _ in shapes),
            triton.cdiv(max(length for _, length in shapes), PIECE),
            len(some),
        )
        conditional_copy_kernel[grid](
            news, olds, good.view(torch.uint8), tuple(length for _, length in shapes),
            tuple(tensor.stride(0) for tensor in news), tuple(tensor.stride(0) for tensor in olds),
            tuple(rows for rows, _ in shapes), COUNT=len(some), PIECE=PIECE, num_warps=4,
        )  # fmt: skip


def _as_rows(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """Both as matrices with contiguous rows, without a copy of `old`."""
    if not old.is_contiguous():
        # An ssm_state (B, D, N), stored as (B, N, D).
        new, old = new.transpose(-1, -2), old.transpose(-1, -2)
    rows = old.shape[0] if old.ndim > 1 else 1
    if new.ndim == 4 and (new.stride(3), new.stride(2), new.stride(0)) == (
        1,
        new.shape[3],
        new.shape[1] * new.stride(1),
    ):
        # The newest slots of keys (B, H, S, E).
        flat = new.as_strided((new.shape[0] * new.shape[1], new[0, 0].numel()), (new.stride(1), 1))
        return flat, old.view(flat.shape)
    return new.reshape(rows, -1), old.view(rows, -1)
