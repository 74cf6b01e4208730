"""Triton kernels of `causal_conv_triton.py`; its docstring says how they work."""
# ruff: noqa: RUF005, SIM102
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(value):
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    return tl.where(value >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _input(x, tail, t, x_time, length, width, d, PAST: tl.constexpr, HAS_TAIL: tl.constexpr):
    """Row t of the input, from the tail where t is negative, zeros outside."""
    row = tl.load(x + t * x_time, mask=d < tl.where((t >= 0) & (t < length), width, 0), other=0.0)
    row = row.to(tl.float32)
    if HAS_TAIL:
        old = tl.load(tail + (PAST + t) * width, mask=d < tl.where(t < 0, width, 0), other=0.0)
        row += old.to(tl.float32)
    return row


@triton.jit
def _reset_at(reset, t, length, HAS_RESET: tl.constexpr):
    """1 where step t forgets all before it, else 0."""
    flag = t * 0
    if HAS_RESET:
        flag = tl.load(reset + t, mask=(t >= 0) & (t < length), other=0).to(tl.int64)
    return flag


@triton.jit
def _convolve(window, taps, flags, offset, TAPS: tl.constexpr, HAS_RESET: tl.constexpr):
    """The newest output of a window of inputs and the flags beside it, both oldest first."""
    total = offset + taps[TAPS - 1] * window[TAPS - 1]
    blocked = flags[TAPS - 1]
    for distance in tl.static_range(1, TAPS):
        tap = taps[TAPS - 1 - distance]
        if HAS_RESET:
            tap = tl.where(blocked != 0, 0.0, tap)
            blocked = blocked | flags[TAPS - 1 - distance]
        total += tap * window[TAPS - 1 - distance]
    return total


@triton.jit
def _load_taps(weight, bias, d, width, TAPS: tl.constexpr, HAS_BIAS: tl.constexpr):
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + d * TAPS + k, mask=d < width, other=0.0).to(tl.float32),)
    offset = d * 0.0
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=d < width, other=0.0).to(tl.float32)
    return taps, offset


@triton.jit
def conv_forward_kernel(
    x, weight, bias, tail, reset, y, new_tail, length, width, x_batch, x_time,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """ROWS activated outputs of a strip of channels; the last strip also writes the new tail."""
    PAST: tl.constexpr = TAPS - 1
    batch = tl.program_id(1).to(tl.int64)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(2) * ROWS
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_batch + d
    tail_rows = tail
    if HAS_TAIL:
        tail_rows = tail + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    y_rows = y + batch * length * width + d
    rows = ()
    flags = ()
    for k in tl.static_range(ROWS + PAST):
        t = zero + first + k - PAST
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL and k < PAST),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
    for k in tl.static_range(ROWS):
        t = zero + first + k
        before = _convolve(rows[k : k + TAPS], taps, flags[k : k + TAPS], offset, TAPS, HAS_RESET)
        tl.store(y_rows + t * width, before * _sigmoid(before), mask=d < tl.where(t < length, width, 0))
    if first + ROWS >= length:
        blocked = zero
        for k in tl.static_range(PAST):
            t = zero + length - 1 - k
            row = _input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL)
            if HAS_RESET:
                row = tl.where(blocked != 0, 0.0, row)
                blocked = blocked | _reset_at(reset_row, t, length, HAS_RESET)
            tl.store(new_tail + (batch * PAST + PAST - 1 - k) * width + d, row, mask=d < width)


@triton.jit
def conv_backward_kernel(
    x, weight, bias, tail, reset, grad_y, grad_x, grad_tail, grad_weight, grad_bias,
    length, width, x_batch, x_time,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_TAIL: tl.constexpr, HAS_RESET: tl.constexpr, WANTS_TAIL: tl.constexpr,
):  # fmt: skip
    """Gradients of ROWS inputs of a strip of channels, and the strip's share of those of the weights."""
    PAST: tl.constexpr = TAPS - 1
    batch, part, parts = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = part * ROWS
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_batch + d
    tail_rows = tail
    if HAS_TAIL:
        tail_rows = tail + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    plain = batch * length * width + d
    rows = ()
    flags = ()
    for k in tl.static_range(PAST):
        t = zero + first + k - PAST
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, HAS_TAIL),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
    sums = ()
    for _ in tl.static_range(TAPS):
        sums = sums + (d * 0.0,)
    sum_bias = d * 0.0
    grads = ()
    for _ in tl.static_range(PAST):
        grads = grads + (d * 0.0,)
    for k in tl.static_range(ROWS + PAST):
        # rows, flags and, further down, grads hold steps t - PAST to t.
        t = zero + first + k
        rows = rows + (_input(x_rows, tail_rows, t, x_time, length, width, d, PAST, False),)
        flags = flags + (_reset_at(reset_row, t, length, HAS_RESET),)
        out = tl.load(grad_y + plain + t * width, mask=d < tl.where(t < length, width, 0), other=0.0)
        before = _convolve(rows, taps, flags, offset, TAPS, HAS_RESET)
        sigmoid = _sigmoid(before)
        grad = out.to(tl.float32) * sigmoid * (1.0 + before * (1.0 - sigmoid))
        if k < ROWS:
            sum_bias += grad
            blocked = flags[PAST]
            sums = sums[:PAST] + (sums[PAST] + grad * rows[PAST],)
            for distance in tl.static_range(1, TAPS):
                piece = grad * rows[PAST - distance]
                if HAS_RESET:
                    piece = tl.where(blocked != 0, 0.0, piece)
                    blocked = blocked | flags[PAST - distance]
                sums = sums[: PAST - distance] + (sums[PAST - distance] + piece,) + sums[TAPS - distance :]
        grads = grads + (grad,)
        # These are all the outputs that the input at t - PAST has an effect on.
        total = taps[PAST] * grads[0]
        blocked = zero
        for distance in tl.static_range(1, TAPS):
            piece = taps[PAST - distance] * grads[distance]
            if HAS_RESET:
                blocked = blocked | flags[distance]
                piece = tl.where(blocked != 0, 0.0, piece)
            total += piece
        if k >= PAST:
            into = t - PAST
            tl.store(grad_x + plain + into * width, total, mask=d < tl.where(into < length, width, 0))
        elif WANTS_TAIL:
            if first == 0:
                tl.store(grad_tail + (batch * PAST + k) * width + d, total, mask=d < width)
        grads = grads[1:]
        rows = rows[1:]
        flags = flags[1:]
    strip = (batch * parts + part) * width + d
    for k in tl.static_range(TAPS):
        tl.store(grad_weight + strip * TAPS + k, sums[k], mask=d < width)
    if HAS_BIAS:
        tl.store(grad_bias + strip, sum_bias, mask=d < width)
