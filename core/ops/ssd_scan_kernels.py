"""Triton kernels of `ssd_scan_triton.py`; its docstring says how they work together.

Tiles of inputs and outputs are (Q, P), of weights (Q, N), of states (P, N), with Q steps of a chunk. Suffixes
of strides: `_batch` from lane of text to lane of text, `_time` from step to step, `_head` from head to head.
NARROW is the type of a product's factors, PRECISION what a product does with float32 ones.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.selective_scan_kernels import _sigmoid, _softplus

FLOOR = tl.constexpr(-1e4)
"""The logarithm of a decay that leaves nothing. Not infinity: sums of logarithms are subtracted."""
NOTHING = tl.constexpr(-150.0)
"""Below, 2 to the power of it is zero."""


@triton.jit
def _tile(pointer, rows, columns, row_stride, row_count, column_count):
    """Rows and columns of a matrix, zeros outside. The pointer stands at row 0."""
    mask = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _put(pointer, value, rows, columns, row_stride, row_count, column_count):
    """Write what `_tile` reads, in the pointer's type."""
    mask = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    target = pointer + rows[:, None] * row_stride + columns[None, :]
    tl.store(target, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _head_value(pointer, head, PRESENT: tl.constexpr):
    """One float32 of a head, zero without a pointer."""
    value = 0.0
    if PRESENT:
        value = tl.load(pointer + head).to(tl.float32)
    return value


@triton.jit
def _steps(dt, reset, rate, offset, rows, length, dt_time, HAS_RESET: tl.constexpr):
    """Raw steps, step sizes and the logarithms of the decays (base 2) of a chunk.

    From `length` on, steps of size zero: they leave the state as it is.
    """
    raw = tl.load(dt + rows * dt_time, mask=rows < length, other=0.0).to(tl.float32) + offset
    delta = tl.where(rows < length, _softplus(raw), 0.0)
    logs = tl.maximum(delta * rate, FLOOR)
    if HAS_RESET:
        flags = tl.load(reset + rows, mask=rows < length, other=0)
        logs = tl.where(flags != 0, FLOOR, logs)
    return raw, delta, logs


@triton.jit
def _borders(logs):
    """What is left of the state before a chunk at each step, of each step's input at the end, of all."""
    precise = logs.to(tl.float64)
    total = tl.cumsum(precise, 0)
    whole = tl.sum(precise, 0)
    entering = tl.exp2(total.to(tl.float32))
    leaving = tl.exp2((whole - total).to(tl.float32))
    return total, entering, leaving, tl.exp2(whole.to(tl.float32))


@triton.jit
def _halves(total):
    """A float64 as the sum of two float32: their differences keep the digits, at a fraction of the cost."""
    high = total.to(tl.float32)
    return high, (total - high.to(tl.float64)).to(tl.float32)


@triton.jit
def ssd_forward_kernel(
    x, dt, A, B, C, D, bias, reset, entries, y, borders, last, through,
    length, heads, size, states, part_chunks,
    x_batch, x_time, x_head, dt_batch, dt_time, dt_head, B_batch, B_time, C_batch, C_time,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    LOCAL: tl.constexpr, KEEP: tl.constexpr, HAS_ENTRY: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Outputs and last state of a part of time; with LOCAL, its last state from zero and what it leaves."""
    tiles = tl.cdiv(size, P)
    head, part, batch = tl.program_id(0) // tiles, tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)
    n = tl.arange(0, N)
    row = batch * heads + head
    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    offset = _head_value(bias, head, HAS_BIAS)
    direct = _head_value(D, head, HAS_D)
    x += batch * x_batch + head * x_head
    dt += batch * dt_batch + head * dt_head
    B += batch * B_batch
    C += batch * C_batch
    reset += batch * length if HAS_RESET else 0
    y += (batch * length * heads + head) * size
    area = size * states
    if HAS_ENTRY:
        h = _tile(entries + (row * tl.num_programs(1) + part) * area, p, n, states, size, states)
    else:
        h = tl.zeros((P, N), tl.float32)
    left = 1.0
    first = part * part_chunks
    stop = tl.minimum(first + part_chunks, chunks)
    for k in range(first, stop):
        rows = batch * 0 + k * Q + step  # 64 bits wide
        raw, delta, logs = _steps(dt, reset, rate, offset, rows, length, dt_time, HAS_RESET)
        total, entering, leaving, all_left = _borders(logs)
        inputs = _tile(x, rows, p, x_time, length, size).to(NARROW)
        weights_B = _tile(B, rows, n, B_time, length, states).to(NARROW)
        if not LOCAL:
            if KEEP:
                _put(borders + (row * chunks + k) * area, h, p, n, states, size, states)
            weights_C = _tile(C, rows, n, C_time, length, states).to(NARROW)
            high, low = _halves(total)
            ahead = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
            decay = tl.exp2(tl.where(step[:, None] >= step[None, :], ahead, FLOOR))
            spread = tl.dot(weights_C, tl.trans(weights_B), input_precision=PRECISION)
            spread *= decay * delta[None, :]
            entered = (weights_C * entering[:, None]).to(NARROW)
            out = tl.dot(entered, tl.trans(h.to(NARROW)), input_precision=PRECISION)
            out = tl.dot(spread.to(NARROW), inputs, out, input_precision=PRECISION)
            if HAS_D:
                out += direct * inputs.to(tl.float32)
            _put(y, out, rows, p, heads * size, length, size)
        added = (weights_B * (delta * leaving)[:, None]).to(NARROW)
        h = tl.dot(tl.trans(inputs), added, h * all_left, input_precision=PRECISION)
        left *= all_left
    if LOCAL:
        slot = row * tl.num_programs(1) + part
        _put(last + slot * area, h, p, n, states, size, states)
        tl.store(through + slot, left)  # the same from every tile of the head
    elif part == tl.num_programs(1) - 1:
        _put(last + row * area, h, p, n, states, size, states)


@triton.jit
def ssd_carry_kernel(
    through, first, local, parts, area, PIECE: tl.constexpr, HAS_FIRST: tl.constexpr, BACKWARD: tl.constexpr
):
    """Turn what each part of time ends with, started from zero, into what it starts with, in place."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    carried = tl.zeros((PIECE,), tl.float32)
    if HAS_FIRST:
        carried = tl.load(first + row * area + at, mask=at < area, other=0.0)
    for i in range(parts):
        slot = row * parts + i
        if BACKWARD:
            slot = row * parts + parts - 1 - i
        left = tl.load(through + slot)
        found = tl.load(local + slot * area + at, mask=at < area, other=0.0)
        tl.store(local + slot * area + at, carried, mask=at < area)
        carried = left * carried + found


@triton.jit
def ssd_state_gradients_kernel(
    dt, A, C, bias, reset, grad_y, entries, grad_borders, grad_first, through,
    length, heads, size, states, part_chunks,
    dt_batch, dt_time, dt_head, C_batch, C_time, g_batch, g_time, g_head,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, NARROW: tl.constexpr, PRECISION: tl.constexpr,
    LOCAL: tl.constexpr, WANTS_FIRST: tl.constexpr, HAS_ENTRY: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state at each chunk's end, from the last chunk of a part of time to the first.

    `grad_first` is the gradient of the state before all; with LOCAL, of that before each part if none
    reaches it from behind.
    """
    tiles = tl.cdiv(size, P)
    head, part, batch = tl.program_id(0) // tiles, tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)
    n = tl.arange(0, N)
    row = batch * heads + head
    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    offset = _head_value(bias, head, HAS_BIAS)
    dt += batch * dt_batch + head * dt_head
    C += batch * C_batch
    reset += batch * length if HAS_RESET else 0
    grad_y += batch * g_batch + head * g_head
    area = size * states
    slot = row * tl.num_programs(1) + part
    if HAS_ENTRY:
        grad = _tile(entries + slot * area, p, n, states, size, states)
    else:
        grad = tl.zeros((P, N), tl.float32)
    left = 1.0
    first = part * part_chunks
    stop = tl.minimum(first + part_chunks, chunks)
    if not WANTS_FIRST:
        first = tl.maximum(first, 1)  # nobody asks what comes before the first chunk
    for i in range(stop - first):
        k = stop - 1 - i
        rows = batch * 0 + k * Q + step
        raw, delta, logs = _steps(dt, reset, rate, offset, rows, length, dt_time, HAS_RESET)
        total, entering, leaving, all_left = _borders(logs)
        if not LOCAL:
            _put(grad_borders + (row * chunks + k) * area, grad, p, n, states, size, states)
        grad_out = _tile(grad_y, rows, p, g_time, length, size).to(NARROW)
        weights_C = _tile(C, rows, n, C_time, length, states)
        entered = (weights_C * entering[:, None]).to(NARROW)
        grad = tl.dot(tl.trans(grad_out), entered, grad * all_left, input_precision=PRECISION)
        left *= all_left
    if LOCAL:
        _put(grad_first + slot * area, grad, p, n, states, size, states)
        tl.store(through + slot, left)
    elif part == 0:
        if WANTS_FIRST:
            _put(grad_first + row * area, grad, p, n, states, size, states)
        else:
            _put(grad_borders + row * chunks * area, grad, p, n, states, size, states)


@triton.jit
def ssd_backward_kernel(
    x, dt, A, B, C, D, bias, reset, borders, grad_borders, grad_y,
    grad_x, grad_dt, grad_B, grad_C, sums,
    length, heads, size, states, group_heads,
    x_batch, x_time, x_head, dt_batch, dt_time, dt_head, B_batch, B_time, C_batch, C_time,
    g_batch, g_time, g_head,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr,
    NARROW: tl.constexpr, PRECISION: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk in a group of heads, given those of the states at its end.

    Matrices of pairs of steps have the inputs' steps as rows and the outputs' as columns. `sums` are shares
    of those of A, D and the bias, (B, chunks, 3, H); grad_B and grad_C are shares a group, (groups, B, L, N).
    """
    k, group, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    rows = batch * 0 + k * Q + step
    n = tl.arange(0, N)
    before = step[:, None] < step[None, :]
    same = step[:, None] == step[None, :]
    area = size * states
    reset += batch * length if HAS_RESET else 0
    weights_B = _tile(B + batch * B_batch, rows, n, B_time, length, states).to(NARROW)
    weights_C = _tile(C + batch * C_batch, rows, n, C_time, length, states).to(NARROW)
    pairs = tl.dot(weights_B, tl.trans(weights_C), input_precision=PRECISION)
    pairs_same = tl.sum(tl.where(same, pairs, 0.0), 1)
    grad_pairs = tl.zeros((Q, Q), tl.float32)
    sum_B = tl.zeros((Q, N), tl.float32)
    sum_C = tl.zeros((Q, N), tl.float32)
    first = group * group_heads
    for head in range(first, tl.minimum(first + group_heads, heads)):
        rate = tl.load(A + head).to(tl.float32)
        offset = _head_value(bias, head, HAS_BIAS)
        direct = _head_value(D, head, HAS_D)
        steps = dt + batch * dt_batch + head * dt_head
        raw, delta, logs = _steps(
            steps, reset, rate * 1.4426950408889634, offset, rows, length, dt_time, HAS_RESET
        )
        total, entering, leaving, all_left = _borders(logs)
        high, low = _halves(total)
        ahead = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
        decay = tl.exp2(tl.where(before, ahead, FLOOR))
        weighted = (decay + tl.where(same, 1.0, 0.0)) * delta[:, None]
        spread = (pairs * weighted).to(NARROW)
        leaves = delta * leaving
        added = (weights_B * leaves[:, None]).to(NARROW)
        grad_spread = tl.zeros((Q, Q), tl.float32)
        along_B = tl.zeros((Q, N), tl.float32)
        along_C = tl.zeros((Q, N), tl.float32)
        link = tl.zeros((P, N), tl.float32)
        state = ((batch * heads + head) * chunks + k) * area
        for tile in range(TILES):
            p = tile * P + tl.arange(0, P)
            inputs = _tile(x + batch * x_batch + head * x_head, rows, p, x_time, length, size).to(NARROW)
            outs = _tile(grad_y + batch * g_batch + head * g_head, rows, p, g_time, length, size).to(NARROW)
            border = _tile(borders + state, p, n, states, size, states)
            grad = _tile(grad_borders + state, p, n, states, size, states)
            link += border.to(tl.float32) * grad.to(tl.float32)
            grad_spread = tl.dot(inputs, tl.trans(outs), grad_spread, input_precision=PRECISION)
            along_B = tl.dot(inputs, grad.to(NARROW), along_B, input_precision=PRECISION)
            along_C = tl.dot(outs, border.to(NARROW), along_C, input_precision=PRECISION)
            grad_inputs = tl.dot(added, tl.trans(grad.to(NARROW)), input_precision=PRECISION)
            grad_inputs = tl.dot(spread, outs, grad_inputs, input_precision=PRECISION)
            if HAS_D:
                grad_inputs += direct * outs.to(tl.float32)
            into = grad_x + (batch * length * heads + head) * size
            _put(into, grad_inputs, rows, p, heads * size, length, size)
        grad_pairs += grad_spread * weighted
        sum_B += along_B * leaves[:, None]
        along_C *= entering[:, None]
        sum_C += along_C
        # What each decay receives. A step's own input meets no decay, so it stays out of these sums, which
        # would lose digits to it.
        spread_same = tl.sum(tl.where(same, grad_spread, 0.0), 1)
        flow = grad_spread * pairs * decay
        by_source = tl.sum(flow, 1)
        by_target = tl.sum(flow * delta[:, None], 0)
        by_entry = tl.sum(along_C * weights_C, 1)
        by_exit = leaving * tl.sum(along_B * weights_B, 1)
        passing = by_exit * delta
        grad_logs = tl.cumsum(by_target - by_source * delta + by_entry, 0, reverse=True)
        grad_logs += tl.cumsum(passing, 0) - passing + all_left * tl.sum(tl.sum(link, 1), 0)
        grad_logs = tl.where(logs > NOTHING, grad_logs, 0.0)
        grad_delta = by_source + spread_same * pairs_same + by_exit + grad_logs * rate
        grad_raw = tl.where(rows < length, grad_delta * _sigmoid(raw), 0.0)
        into = grad_dt + (batch * length + rows) * heads + head
        tl.store(into, grad_raw.to(grad_dt.dtype.element_ty), mask=rows < length)
        share = sums + (batch * chunks + k) * 3 * heads + head
        tl.store(share, tl.sum(grad_logs * delta, 0))
        tl.store(share + heads, tl.sum(spread_same, 0))
        tl.store(share + 2 * heads, tl.sum(grad_raw, 0))
    narrow = grad_pairs.to(NARROW)
    sum_B = tl.dot(narrow, weights_C, sum_B, input_precision=PRECISION)
    sum_C = tl.dot(tl.trans(narrow), weights_B, sum_C, input_precision=PRECISION)
    share = (group * tl.num_programs(2) + batch) * length * states
    _put(grad_B + share, sum_B, rows, n, states, length, states)
    _put(grad_C + share, sum_C, rows, n, states, length, states)


@triton.jit
def ssd_sum_kernel(shares_B, shares_C, grad_B, grad_C, groups, count, PIECE: tl.constexpr):
    """Add the groups' shares (groups, count) of dB and dC in their order."""
    at = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    sum_B = tl.zeros((PIECE,), tl.float32)
    sum_C = tl.zeros((PIECE,), tl.float32)
    for group in range(groups):
        sum_B += tl.load(shares_B + at + group * count, mask=at < count, other=0.0)
        sum_C += tl.load(shares_C + at + group * count, mask=at < count, other=0.0)
    tl.store(grad_B + at, sum_B.to(grad_B.dtype.element_ty), mask=at < count)
    tl.store(grad_C + at, sum_C.to(grad_C.dtype.element_ty), mask=at < count)
