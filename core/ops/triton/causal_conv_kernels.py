"""Triton kernels of `causal_conv.py`; its docstring says how they work.

`flags` covers every reset that matters to a strip that begins at step `at`: bit i is set if step
at + i - (TAPS - 2) is a reset. Most strips have none and take a path without masks. Strides are (batch,
time); channels are contiguous.
"""
# ruff: noqa: RUF005, SIM102
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.activations import short_sigmoid


@triton.jit
def _rows(pointer, stride, t, stop, d, width, ROWS: tl.constexpr):
    """Rows t, t + 1, ... in their stored type, zeros from step `stop` on. The pointer points at row t."""
    rows = ()
    for k in tl.static_range(ROWS):
        mask = d < tl.where(t + k < stop, width, 0)
        rows = rows + (tl.load(pointer + k * stride, mask=mask, other=0.0),)
    return rows


@triton.jit
def _past(x, conv_state, t, x_time, width, d, PAST: tl.constexpr, HAS_STATE: tl.constexpr):
    """Row t of the input in float32: from conv_state where t is negative, zeros before that."""
    row = tl.load(x + t * x_time, mask=d < tl.where(t >= 0, width, 0), other=0.0).to(tl.float32)
    if HAS_STATE:
        old = tl.load(conv_state + (PAST + t) * width, mask=d < tl.where(t < 0, width, 0), other=0.0)
        row += old.to(tl.float32)
    return row


@triton.jit
def _window(x, conv_state, first, x_time, width, d, PAST: tl.constexpr, HAS_STATE: tl.constexpr):
    """The PAST inputs before step `first`, oldest first."""
    window = ()
    for k in tl.static_range(PAST):
        window = window + (_past(x, conv_state, first + k - PAST, x_time, width, d, PAST, HAS_STATE),)
    return window


@triton.jit
def _read_flags(reset, at, length, TAPS: tl.constexpr, HAS_RESET: tl.constexpr):
    """The resets from step at - (TAPS - 2) on, one per lane."""
    lane = tl.arange(0, 32)
    marks = lane * 0
    if HAS_RESET:
        t = at - (TAPS - 2) + lane
        marks = tl.load(reset + t, mask=(t >= 0) & (t < length), other=0).to(tl.int32)
    return marks


@triton.jit
def _as_bits(marks, COUNT: tl.constexpr, HAS_RESET: tl.constexpr):
    """The first COUNT of the resets that the lanes read, as bits of an integer."""
    bits = 0
    if HAS_RESET:
        lane = tl.arange(0, 32)
        bits = tl.sum(tl.where((lane < COUNT) & (marks != 0), 1 << lane, 0), 0)
    return bits


@triton.jit
def _unless(flags, value, FIRST: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr):
    """The value, or zero where any of the COUNT flags from FIRST on is set."""
    if MASKED and COUNT > 0:
        value = tl.where((flags & (((1 << COUNT) - 1) << FIRST)) != 0, 0.0, value)
    return value


@triton.jit
def _seen(window, row, flags, K: tl.constexpr, TAPS: tl.constexpr, MASKED: tl.constexpr):
    """The inputs that the taps see at row K of a strip, oldest first."""
    seen = ()
    for k in tl.static_range(TAPS - 1):
        seen = seen + (_unless(flags, window[k], K + k, TAPS - 1 - k, MASKED),)
    return seen + (row,)


@triton.jit
def _convolve(seen, taps, offset, TAPS: tl.constexpr):
    total = offset
    for k in tl.static_range(TAPS):
        total += taps[TAPS - 1 - k] * seen[TAPS - 1 - k]
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
def _forward_strip(
    rows, window, flags, taps, offset, y, at, stop, width, d,
    TAPS: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the outputs of a strip and return the window after it. `y` points at row `at`."""
    for k in tl.static_range(ROWS):
        row = rows[k].to(tl.float32)
        before = _convolve(_seen(window, row, flags, k, TAPS, MASKED), taps, offset, TAPS)
        out = before * short_sigmoid(before)
        mask = d < tl.where(at + k < stop, width, 0)
        tl.store(y + k * width, out.to(y.dtype.element_ty), mask=mask)
        window = (window + (row,))[1:]
    return window


@triton.jit
def conv_forward_kernel(
    x, weight, bias, conv_state, reset, y, new_conv_state, length, width, steps, x_strides,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """`steps` activated outputs of some channels.

    The program that computes the last one also writes the new state.
    """
    PAST: tl.constexpr = TAPS - 1
    COUNT: tl.constexpr = ROWS + TAPS - 2
    batch = tl.program_id(1).to(tl.int64)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(2) * steps
    stop = tl.minimum(first + steps, length)
    x_time = x_strides[1] + zero
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_strides[0] + d
    conv_state_rows = conv_state
    if HAS_STATE:
        conv_state_rows = conv_state + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    y_rows = y + batch * length * width + d
    window = _window(x_rows, conv_state_rows, first, x_time, width, d, PAST, HAS_STATE)
    ahead = _rows(x_rows + first * x_time, x_time, first, stop, d, width, ROWS)
    marks = _read_flags(reset_row, first, length, TAPS, HAS_RESET)
    for at in range(first, stop, ROWS):
        rows = ahead
        flags = _as_bits(marks, COUNT, HAS_RESET)
        # Read before writing: the compiler never moves a read above an earlier write.
        ahead = _rows(x_rows + (at + ROWS) * x_time, x_time, at + ROWS, stop, d, width, ROWS)
        marks = _read_flags(reset_row, at + ROWS, length, TAPS, HAS_RESET)
        y_here = y_rows + (zero + at) * width
        if flags == 0:
            window = _forward_strip(
                rows, window, flags, taps, offset, y_here, at, stop, width, d, TAPS, ROWS, False
            )
        else:
            window = _forward_strip(
                rows, window, flags, taps, offset, y_here, at, stop, width, d, TAPS, ROWS, True
            )
    if first + steps >= length:
        flags = _as_bits(_read_flags(reset_row, length, length, TAPS, HAS_RESET), TAPS - 2, HAS_RESET)
        for k in tl.static_range(PAST):
            row = _past(x_rows, conv_state_rows, length + k - PAST, x_time, width, d, PAST, HAS_STATE)
            row = _unless(flags, row, k, PAST - 1 - k, HAS_RESET)
            into = new_conv_state + (batch * PAST + k) * width + d
            tl.store(into, row.to(new_conv_state.dtype.element_ty), mask=d < width)


@triton.jit
def _backward_strip(
    rows, outs, window, grads, sums, flags, taps, offset, grad_x, into_time, grad_conv_state, at, first, stop,
    width, d, TAPS: tl.constexpr, ROWS: tl.constexpr, OWN: tl.constexpr, WANTS_STATE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The backward of a strip: write grad_x up to PAST rows before its end, and if OWN add to the sums.

    Returns the window, the last PAST gradients before the activation, and the sums. `grad_x` points at row
    `at`, `grad_conv_state` at row 0.
    """
    PAST: tl.constexpr = TAPS - 1
    for k in tl.static_range(ROWS):
        row = rows[k].to(tl.float32)
        seen = _seen(window, row, flags, k, TAPS, MASKED)
        before = _convolve(seen, taps, offset, TAPS)
        sigmoid = short_sigmoid(before)
        grad = outs[k].to(tl.float32) * sigmoid * (1.0 + before * (1.0 - sigmoid))
        if OWN:
            added = ()
            for tap in tl.static_range(TAPS):
                added = added + (sums[tap] + grad * seen[tap],)
            sums = added + (sums[TAPS] + grad,)
        grads = grads + (grad,)
        # These are all the outputs that depend on the input at t - PAST.
        total = taps[PAST] * grads[0]
        for distance in tl.static_range(1, TAPS):
            total += taps[PAST - distance] * _unless(flags, grads[distance], k, distance, MASKED)
        into = at + k - PAST
        mask = d < tl.where((into >= first) & (into < stop), width, 0)
        tl.store(grad_x + (k - PAST) * into_time, total.to(grad_x.dtype.element_ty), mask=mask)
        if WANTS_STATE and k < PAST:
            if at == 0:
                tl.store(
                    grad_conv_state + k * width, total.to(grad_conv_state.dtype.element_ty), mask=d < width
                )
        grads = grads[1:]
        window = (window + (row,))[1:]
    return window, grads, sums


@triton.jit
def conv_backward_kernel(
    x, weight, bias, conv_state, reset, grad_y, grad_x, grad_conv_state, shares,
    length, width, steps, x_strides, grad_y_strides, grad_x_strides,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_STATE: tl.constexpr, HAS_RESET: tl.constexpr, WANTS_STATE: tl.constexpr,
):  # fmt: skip
    """Gradients of `steps` inputs of some channels, and a share of the weights' and the bias's gradients."""
    PAST: tl.constexpr = TAPS - 1
    COUNT: tl.constexpr = ROWS + TAPS - 2
    batch, part, parts = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    zero = batch * 0
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = part * steps
    stop = tl.minimum(first + steps, length)
    # The PAST outputs after these steps depend on their inputs too.
    end = tl.minimum(stop + PAST, length)
    x_time = x_strides[1] + zero
    g_time = grad_y_strides[1] + zero
    taps, offset = _load_taps(weight, bias, d, width, TAPS, HAS_BIAS)
    x_rows = x + batch * x_strides[0] + d
    g_rows = grad_y + batch * grad_y_strides[0] + d
    conv_state_rows = conv_state
    if HAS_STATE:
        conv_state_rows = conv_state + batch * PAST * width + d
    reset_row = reset
    if HAS_RESET:
        reset_row = reset + batch * length
    into_time = grad_x_strides[1] + zero
    into = grad_x + batch * grad_x_strides[0] + d
    into_conv_state = grad_conv_state + batch * PAST * width + d
    window = _window(x_rows, conv_state_rows, first, x_time, width, d, PAST, HAS_STATE)
    grads = ()
    sums = (d * 0.0,)
    for _ in tl.static_range(PAST):
        grads = grads + (d * 0.0,)
        sums = sums + (d * 0.0,)
    sums = sums + (d * 0.0,)
    ahead = _rows(x_rows + first * x_time, x_time, first, end, d, width, ROWS)
    ahead_outs = _rows(g_rows + first * g_time, g_time, first, end, d, width, ROWS)
    marks = _read_flags(reset_row, first, length, TAPS, HAS_RESET)
    for at in range(first, stop, ROWS):
        rows = ahead
        outs = ahead_outs
        flags = _as_bits(marks, COUNT, HAS_RESET)
        # Read before writing: the compiler never moves a read above an earlier write.
        ahead = _rows(x_rows + (at + ROWS) * x_time, x_time, at + ROWS, end, d, width, ROWS)
        ahead_outs = _rows(g_rows + (at + ROWS) * g_time, g_time, at + ROWS, end, d, width, ROWS)
        marks = _read_flags(reset_row, at + ROWS, length, TAPS, HAS_RESET)
        if flags == 0:
            window, grads, sums = _backward_strip(
                rows, outs, window, grads, sums, flags, taps, offset, into + at * into_time, into_time,
                into_conv_state, at, first, stop, width, d, TAPS, ROWS, True, WANTS_STATE, False,
            )  # fmt: skip
        else:
            window, grads, sums = _backward_strip(
                rows, outs, window, grads, sums, flags, taps, offset, into + at * into_time, into_time,
                into_conv_state, at, first, stop, width, d, TAPS, ROWS, True, WANTS_STATE, True,
            )  # fmt: skip
    at = first + tl.cdiv(stop - first, ROWS) * ROWS
    _backward_strip(
        ahead, ahead_outs, window, grads, sums, _as_bits(marks, COUNT, HAS_RESET), taps, offset,
        into + at * into_time, into_time, into_conv_state, at, first, stop, width, d, TAPS, PAST,
        False, False, HAS_RESET,
    )  # fmt: skip
    share = shares + (batch * parts + part) * (TAPS + 1) * width + d
    for k in tl.static_range(TAPS + 1):
        tl.store(share + k * width, sums[k], mask=d < width)


@triton.jit
def conv_sums_kernel(
    shares, grad_weight, grad_bias, count, width,
    TAPS: tl.constexpr, SHARES: tl.constexpr, CHANNELS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Add `count` shares (TAPS + 1, width) for one tap, or the bias, of some channels."""
    tap = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = d < width
    total = tl.zeros((SHARES, CHANNELS), tl.float32)
    for first in range(0, count, SHARES):
        share = first + tl.arange(0, SHARES)
        row = (share.to(tl.int64) * (TAPS + 1) + tap) * width
        mask = (share < count)[:, None] & inside[None, :]
        total += tl.load(shares + row[:, None] + d[None, :], mask=mask, other=0.0)
    gradient = tl.sum(total, 0)
    if tap < TAPS:
        tl.store(grad_weight + d * TAPS + tap, gradient.to(grad_weight.dtype.element_ty), mask=inside)
    elif HAS_BIAS:
        tl.store(grad_bias + d, gradient.to(grad_bias.dtype.element_ty), mask=inside)
