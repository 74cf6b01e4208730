"""Triton kernels of the selective scan up to the outputs; names as in `shared_kernels.py`."""
# ruff: noqa: RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.activations import sigmoid
from core.ops.triton.selective_scan.shared_kernels import (
    _border_tiles,
    _both_weights,
    _breaks,
    _channel_values,
    _inside,
    _prefetch,
    _put,
    _rows,
    _step_size,
)


@triton.jit(do_not_specialize=["length", "total", "row_programs"])
def scan_prepare_kernel(
    A, B, C, rates, rows,
    length, total, row_programs, width, states,
    A_strides, B_strides, C_strides,
    N: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Rows [B, C] of all steps, and rates (states, width) scaled for powers of two, in float32."""
    program = tl.program_id(0)
    n = tl.arange(0, N)
    if program < row_programs:
        step = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
        batch, t = step // length, step % length
        inside = (step < total)[:, None] & (n < states)[None, :]
        from_B = B + (batch * B_strides[0] + t * B_strides[1])[:, None] + n[None, :] * B_strides[2]
        from_C = C + (batch * C_strides[0] + t * C_strides[1])[:, None] + n[None, :] * C_strides[2]
        row_B = tl.load(from_B, mask=inside, other=0.0).to(tl.float32)
        row_C = tl.load(from_C, mask=inside, other=0.0).to(tl.float32)
        into = rows + step[:, None] * (2 * N) + n[None, :]
        written = (step < total)[:, None] & (n >= 0)[None, :]
        tl.store(into, row_B, mask=written)
        tl.store(into + N, row_C, mask=written)
    else:
        d = (program - row_programs) * CHANNELS + tl.arange(0, CHANNELS)
        valid = (n[:, None] < states) & (d[None, :] < width)
        rate = tl.load(A + d[None, :] * A_strides[0] + n[:, None] * A_strides[1], mask=valid, other=0.0)
        rate = rate.to(tl.float32) * 1.4426950408889634
        tl.store(rates + n[:, None] * width + d[None, :], rate, mask=valid)


@triton.jit(do_not_specialize=["unaligned", "length", "chunk", "chunks"])
def scan_forward_kernel(
    x, dt, rates, rows, D, z, bias, reset, entries, y, borders, last, sums,
    length, width, chunk, states, chunks,
    x_strides, dt_strides, z_strides,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
    LOCAL: tl.constexpr, KEEP_BORDERS: tl.constexpr, HAS_ENTRY: tl.constexpr, HAS_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
    WEIGHTS_AHEAD: tl.constexpr,
):  # fmt: skip
    """Outputs and last state of a chunk; with LOCAL, its last state from zero and its sum of step sizes."""
    part, batch = tl.program_id(2), tl.program_id(1).to(tl.int64)
    x_batch, x_time = x_strides
    dt_batch, dt_time = dt_strides
    z_batch, z_time = z_strides
    # `unaligned` is 0, but the compiler can't know that; so each lane keeps one channel, not a vector of
    # them.
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rate = tl.load(rates + tile, mask=tile_mask, other=0.0)
    offset = _channel_values(bias, d, width, HAS_BIAS)
    direct = _channel_values(D, d, width, HAS_D)
    slot = (batch * chunks + part) * states * width
    if HAS_ENTRY:
        h = tl.load(entries + slot + tile, mask=tile_mask, other=0.0)
    else:
        h = tl.zeros((N, CHANNELS), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    border = borders
    if KEEP_BORDERS:
        border = _border_tiles(borders, batch, tl.cdiv(length, SPAN), unaligned, N, CHANNELS)
        border += (batch * 0 + part * chunk // SPAN) * tl.num_programs(0) * N * CHANNELS
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    at = batch * 0 + first  # 64 bits wide
    x_rows = x + batch * x_batch + d
    dt_rows = dt + batch * dt_batch + d
    z_rows = z + batch * z_batch + d if HAS_Z else x_rows
    inputs = _rows(x_rows + at * x_time, x_time, d, width, first, stop, BLOCK, FULL)
    raws = _rows(dt_rows + at * dt_time, dt_time, d, width, first, stop, BLOCK, FULL)
    gates = inputs
    if HAS_Z and not LOCAL:
        gates = _rows(z_rows + at * z_time, z_time, d, width, first, stop, BLOCK, FULL)
    row = rows + (batch * length + at) * (2 * N)
    upcoming = ()
    for k in tl.static_range(WEIGHTS_AHEAD):
        upcoming = upcoming + (_both_weights(row, first, k, stop, N, EVEN, LOCAL == 0),)
    touched = tl.zeros((32,), tl.int32)
    for start in range(first, stop, BLOCK):
        at = batch * 0 + start
        now_x, now_dt, now_z = inputs, raws, gates
        following = start + BLOCK
        if EVEN:
            following = tl.minimum(following, stop - BLOCK)
        to = batch * 0 + following
        inputs = _rows(x_rows + to * x_time, x_time, d, width, following, stop, BLOCK, FULL)
        raws = _rows(dt_rows + to * dt_time, dt_time, d, width, following, stop, BLOCK, FULL)
        if HAS_Z and not LOCAL:
            gates = _rows(z_rows + to * z_time, z_time, d, width, following, stop, BLOCK, FULL)
        near = tl.minimum(start + BLOCK, stop - 1)
        if EVEN:
            near = tl.minimum(start + BLOCK, stop - BLOCK)
        seen = _prefetch(rows + (batch * length + near) * (2 * N), near, stop, N, BLOCK, EVEN)
        breaks = _breaks(reset, batch * length + at, start, stop, BLOCK, HAS_RESET)
        row = rows + (batch * length + at) * (2 * N)
        row_after = rows + (batch * length + to) * (2 * N)
        results = ()
        for k in tl.static_range(BLOCK):
            t = start + k
            # Before the border is written: the compiler never moves a read above an earlier write.
            if k + WEIGHTS_AHEAD < BLOCK:
                upcoming = upcoming + (
                    _both_weights(row, start, k + WEIGHTS_AHEAD, stop, N, EVEN, LOCAL == 0),
                )
            else:
                beyond = k + WEIGHTS_AHEAD - BLOCK
                upcoming = upcoming + (
                    _both_weights(row_after, following, beyond, stop, N, EVEN, LOCAL == 0),
                )
            weights_B, weights_C = upcoming[0]
            upcoming = upcoming[1:]
            if KEEP_BORDERS and k % SPAN == 0:
                if EVEN:
                    tl.store(border, h)
                else:
                    tl.store(border, h, mask=_inside(n, N, t, stop)[:, None])
                border += tl.num_programs(0) * N * CHANNELS
            delta = _step_size(now_dt[k].to(tl.float32) + offset, t, stop, EVEN)
            value = now_x[k].to(tl.float32)
            decay = tl.exp2(delta[None, :] * rate + breaks[k])
            h = decay * h + (delta * value)[None, :] * weights_B[:, None]
            if LOCAL:
                total += delta
                if HAS_RESET:
                    total += tl.where(breaks[k] < 0, 1e30, 0.0)
            else:
                out = tl.sum(h * weights_C[:, None], 0)
                if HAS_D:
                    out += direct * value
                if HAS_Z:
                    gate = now_z[k].to(tl.float32)
                    out *= gate * sigmoid(gate)
                results = results + (out,)
        if not LOCAL:
            y_rows = y + (batch * length + at) * width + d
            for k in tl.static_range(BLOCK):
                _put(y_rows, results[k], d, width, start + k, stop, FULL)
                y_rows += width
        touched = touched ^ seen
    # Adds zero, so that the compiler doesn't remove the prefetching reads.
    h += tl.sum(touched & unaligned, 0).to(tl.float32)
    if LOCAL:
        tl.store(last + slot + tile, h, mask=tile_mask)
        tl.store(sums + (batch * chunks + part) * width + d, total, mask=d < width)
    elif part == chunks - 1:
        tl.store(last + batch * states * width + tile, h, mask=tile_mask)


@triton.jit(do_not_specialize=["unaligned", "chunks"])
def scan_carry_kernel(
    rates, sums, first, local, chunks, width, states, unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, HAS_FIRST: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Replace each chunk's last state (computed from zero) by the state it starts with, in place."""
    batch = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    mask = (n[:, None] < states) & (d[None, :] < width)
    rate = tl.load(rates + tile, mask=mask, other=0.0)
    if HAS_FIRST:
        carried = tl.load(first + batch * states * width + tile, mask=mask, other=0.0)
    else:
        carried = tl.zeros((N, CHANNELS), tl.float32)
    # The last chunk passes nothing on: its state is neither stored nor read.
    part = batch * chunks
    if BACKWARD:
        part += chunks - 1
    total = tl.load(sums + part * width + d, mask=d < width, other=0.0)
    local_state = tl.load(local + part * states * width + tile, mask=mask, other=0.0)
    for i in range(chunks):
        now = part
        now_total, now_local = total, local_state
        part = batch * chunks + tl.minimum(i + 1, chunks - 1)
        if BACKWARD:
            part = batch * chunks + tl.maximum(chunks - 2 - i, 0)
        bound = tl.where(i + 2 < chunks, width, 0)
        total = tl.load(sums + part * width + d, mask=d < bound, other=0.0)
        local_state = tl.load(
            local + part * states * width + tile, mask=mask & (d < bound)[None, :], other=0.0
        )
        tl.store(local + now * states * width + tile, carried, mask=mask)
        carried = tl.exp2(now_total[None, :] * rate) * carried + now_local
