"""Code that the kernels of the selective scan share; the package's docstring explains how they work together.

Tiles are (N, CHANNELS). Strides of (B, L, D) tensors are (batch, time); channels are contiguous. BLOCK: steps
between two reads of rows. EVEN: the length is a multiple of BLOCK. FULL: EVEN, and no channel or state of a
tile is padding, so that nothing needs a mask.

How memory latency is hidden: rows of channels are read one block ahead, in their stored type. Rows of B and C
are prefetched one block ahead (`_prefetch`), so that they are in the processor's cache when they are read,
and they are read WEIGHTS_AHEAD steps before they are used, also across blocks: `upcoming` holds them as (B,
C) rows in the order of their use. Results are written at the end of a block, because the compiler never moves
a read above an earlier write.
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.activations import softplus


@triton.jit
def _inside(index, bound, t, stop):
    """True if index < bound and t < stop."""
    return index < tl.where(t < stop, bound, 0)


@triton.jit
def _rows(pointer, time, d, width, t, stop, COUNT: tl.constexpr, FULL: tl.constexpr):
    """COUNT rows from step `t` on in their stored type, zeros outside."""
    rows = ()
    for k in tl.static_range(COUNT):
        if FULL:
            row = tl.load(pointer)
        else:
            row = tl.load(pointer, mask=_inside(d, width, t + k, stop), other=0.0)
        rows = rows + (row,)
        pointer += time
    return rows


@triton.jit
def _put(pointer, value, index, bound, t, stop, FULL: tl.constexpr):
    """Write the part of a row that lies inside."""
    if FULL:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=_inside(index, bound, t, stop))


@triton.jit
def _weights(rows, start, k, stop, N: tl.constexpr, EVEN: tl.constexpr):
    """The row of B or C of step k of a block that begins at `start`, zeros from `stop` on."""
    n = tl.arange(0, N)
    row = rows + k * 2 * N
    if EVEN:
        return tl.load(row + n)
    return tl.load(row + n, mask=_inside(n, N, start + k, stop), other=0.0)


@triton.jit
def _both_weights(rows, start, k, stop, N: tl.constexpr, EVEN: tl.constexpr, HAS_C: tl.constexpr):
    """A step's rows of B and C. Without HAS_C nobody uses C, and its row is B's."""
    weights_B = _weights(rows, start, k, stop, N, EVEN)
    weights_C = weights_B
    if HAS_C:
        weights_C = _weights(rows + N, start, k, stop, N, EVEN)
    return weights_B, weights_C


@triton.jit
def _prefetch(rows, t, stop, N: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """Read a few values from all parts of the next block's rows of B and C, to bring them into the cache."""
    SPACING: tl.constexpr = BLOCK * 2 * N // 32
    lane = tl.arange(0, 32)
    if EVEN:
        part = tl.load(rows + lane * SPACING)
    else:
        part = tl.load(rows + lane * SPACING, mask=t + lane * BLOCK // 32 < stop, other=0.0)
    return part.to(tl.int32, bitcast=True)


@triton.jit
def _step_size(raw, t, stop, EVEN: tl.constexpr):
    """softplus(raw); zero, a step that changes nothing, from `stop` on."""
    delta = softplus(raw)
    if not EVEN:
        delta = tl.where(t < stop, delta, 0.0)
    return delta


@triton.jit
def _breaks(reset, at, t, stop, COUNT: tl.constexpr, HAS_RESET: tl.constexpr):
    """Terms for the exponents: minus infinity where the state is forgotten, else zero."""
    breaks = ()
    for k in tl.static_range(COUNT):
        if HAS_RESET:
            flag = tl.load(reset + at + k, mask=t + k < stop, other=0)
            breaks = breaks + (tl.where(flag != 0, float("-inf"), 0.0),)
        else:
            breaks = breaks + (0.0,)
    return breaks


@triton.jit
def _border_tiles(borders, batch, spans, unaligned, N: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's tile in the first border. A border holds one tile per program, without gaps."""
    lane = unaligned + tl.arange(0, CHANNELS)
    group, groups = tl.program_id(0), tl.num_programs(0)
    mine = borders + (batch * spans * groups + group) * N * CHANNELS + lane
    return mine[None, :] + tl.arange(0, N)[:, None] * CHANNELS  # constant distances


@triton.jit
def _channel_values(pointer, d, width, PRESENT: tl.constexpr):
    """One float32 per channel, zeros without a pointer."""
    values = d * 0.0
    if PRESENT:
        values = tl.load(pointer + d, mask=d < width, other=0.0).to(tl.float32)
    return values
