"""Rotary positions (RoPE, arXiv 2104.09864) on CUDA: the angles of all tokens, and pairs rotated by them.

angle of pair i at a position = position x base ** (-i / half)
(first, second) -> (first cos - second sin, second cos + first sin)
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define

ANGLES = 1024
"""Angles per program."""


@triton.jit
def rotate(first, second, cos, sin):
    """A pair of channels rotated by an angle."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def rotation(cos, sin, rows, half, column, mask, ROPE: tl.constexpr):
    """Cosines and sines (rows, columns) of rows of (B T, half); without ROPE, those of angle 0."""
    row_cos = tl.full(mask.shape, 1.0, tl.float32)
    row_sin = tl.zeros(mask.shape, tl.float32)
    if ROPE:
        at = rows[:, None] * half + column[None, :]
        row_cos = tl.load(cos + at, mask=mask, other=1.0)
        row_sin = tl.load(sin + at, mask=mask, other=0.0)
    return row_cos, row_sin


@triton.jit
def rotations_kernel(
    position, cos, sin, count, half, STEP: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr
):
    """Cosines and sines of position x 2 ** (STEP x i) for i below `half`, each (count, half) float32.

    Whole quarter turns are subtracted in float64, so that an angle of many turns loses no digits. The
    remainder, at most an eighth of a turn either way, is exact to float32's last digit.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    rate = tl.exp2(column.to(tl.float64) * STEP) * 0.6366197723675814
    quarters = tl.load(position + rows, mask=rows < count, other=0).to(tl.float64)[:, None]
    quarters = quarters * rate[None, :]
    whole = tl.floor(quarters + 0.5)
    angle = ((quarters - whole) * 1.5707963267948966).to(tl.float32)
    square = angle * angle
    # Series of sine and cosine, as many terms as matter to float32 this close to zero.
    odd = -1.0 / 39916800 * square + 1.0 / 362880
    odd = (odd * square - 1.0 / 5040) * square + 1.0 / 120
    odd = angle + angle * square * (odd * square - 1.0 / 6)
    even = -1.0 / 3628800 * square + 1.0 / 40320
    even = (even * square - 1.0 / 720) * square + 1.0 / 24
    even = 1.0 + square * (even * square - 0.5)
    quarter = whole.to(tl.int64).to(tl.int32)
    swapped = (quarter & 1) == 1
    x = tl.where(swapped, odd, even)
    y = tl.where(swapped, even, odd)
    target = rows[:, None] * half + column[None, :]
    mask = (rows < count)[:, None] & (column < half)[None, :]
    tl.store(cos + target, tl.where(((quarter + 1) & 2) == 2, -x, x), mask=mask)
    tl.store(sin + target, tl.where((quarter & 2) == 2, -y, y), mask=mask)


def _run_rotations(position, half, base):
    shape = (*position.shape, 1, half)
    cos, sin = (torch.empty(shape, dtype=torch.float32, device=position.device) for _ in range(2))
    padded = triton.next_power_of_2(half)
    rows = max(1, ANGLES // padded)
    rotations_kernel[(triton.cdiv(position.numel(), rows),)](
        position.contiguous(), cos, sin, position.numel(), half,
        STEP=-math.log2(base) / half, ROWS=rows, HALF=padded,
    )  # fmt: skip
    return cos, sin


def _fake_rotations(position, half, base):
    shape = (*position.shape, 1, half)
    return position.new_empty(shape, dtype=torch.float32), position.new_empty(shape, dtype=torch.float32)


_rotations = define(
    "rotations",
    "(Tensor position, int half, float base) -> (Tensor, Tensor)",
    _run_rotations,
    _fake_rotations,
)


def rotations(position: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (B, T), each (B, T, 1, half) float32.

    An operator, because a compiler would otherwise recompute them, in float64, wherever they are used.
    """
    cos, sin = _rotations(position, half, base)
    return cos, sin
