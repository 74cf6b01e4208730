"""Triton kernels of `ssd_scan.py`; its docstring says how they work together.

Tiles of inputs and outputs are (Q, P), of B and C (Q, N), of states (P, N); a chunk has Q steps. Strides are
(batch, time, head), or (batch, time) for B and C. PRODUCT_TYPE is the type of a product's factors, PRECISION
how products treat float32 factors.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.activations import sigmoid, softplus

FLOOR = tl.constexpr(-1e4)
"""The logarithm of a decay that leaves nothing. Not infinity: sums of logarithms are subtracted."""
NOTHING = tl.constexpr(-150.0)
"""2 to the power of anything below this is zero in float32."""


@triton.jit
def _tile(pointer, rows, columns, row_stride, row_count, column_count):
    """Rows and columns of a matrix, zeros outside. The pointer points at row 0."""
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
    """A head's value in float32, zero without a pointer."""
    value = 0.0
    if PRESENT:
        value = tl.load(pointer + head).to(tl.float32)
    return value


@triton.jit
def _step_values(steps, chunk, index, plane, step, Q: tl.constexpr):
    """One of the quantities that `ssd_steps_kernel` computed for the steps of a chunk."""
    return tl.load(steps + index * plane + chunk * Q + step)


# Sums along time have a kernel of their own: beside matrix products, every warp would compute them again.
@triton.jit
def ssd_steps_kernel(
    dt, A, bias, reset, steps,
    length, heads, plane, dt_strides,
    Q: tl.constexpr, HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Five quantities per step, each (B, H, chunks, Q), stored `plane` apart.

    0: step sizes. 1 and 2: running sums of the decays' logarithms (base 2), as two float32 whose differences
    keep their digits. 3: what remains at each step of the state before the chunk. 4: what remains at the end
    of each step's input. Steps from `length` on have size zero and leave the state unchanged.
    """
    k, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    step = tl.arange(0, Q)
    inside = k * Q + step < length
    at = batch * 0 + k * Q + step
    rate = tl.load(A + head).to(tl.float32) * 1.4426950408889634
    raw = tl.load(
        dt + batch * dt_strides[0] + at * dt_strides[1] + head * dt_strides[2], mask=inside, other=0.0
    )
    delta = tl.where(inside, softplus(raw.to(tl.float32) + _head_value(bias, head, HAS_BIAS)), 0.0)
    logs = tl.maximum(delta * rate, FLOOR)
    if HAS_RESET:
        flags = tl.load(reset + batch * length + at, mask=inside, other=0)
        logs = tl.where(flags != 0, FLOOR, logs)
    precise = logs.to(tl.float64)
    total = tl.cumsum(precise, 0)
    high = total.to(tl.float32)
    into = steps + ((batch * heads + head) * tl.num_programs(0) + k) * Q + step
    tl.store(into, delta)
    tl.store(into + plane, high)
    tl.store(into + 2 * plane, (total - high.to(tl.float64)).to(tl.float32))
    tl.store(into + 3 * plane, tl.exp2(high))
    tl.store(into + 4 * plane, tl.exp2((tl.sum(precise, 0) - total).to(tl.float32)))


# `zero` is 0, but the compiler can't know that; otherwise it would hold (Q, Q) masks in registers throughout.
@triton.jit(do_not_specialize=["zero"])
def ssd_forward_kernel(
    x, steps, B, C, D, entries, y, borders, last, through,
    length, heads, size, states, part_chunks, plane, zero,
    x_strides, B_strides, C_strides,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PRODUCT_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    LOCAL: tl.constexpr, KEEP: tl.constexpr, HAS_ENTRY: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Outputs and last state of a part of time; with LOCAL, its last state from zero and its total decay."""
    tiles = tl.cdiv(size, P)
    head, part, batch = tl.program_id(0) // tiles, tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)
    n = tl.arange(0, N)
    row = batch * heads + head
    direct = _head_value(D, head, HAS_D)
    x += batch * x_strides[0] + head * x_strides[2]
    B += batch * B_strides[0]
    C += batch * C_strides[0]
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
        start = batch * 0 + k * Q  # 64 bits wide
        count = length - k * Q
        chunk = row * chunks + k
        delta = _step_values(steps, chunk, 0, plane, step, Q)
        leaving = _step_values(steps, chunk, 4, plane, step, Q)
        all_left = _step_values(steps, chunk, 3, plane, Q - 1, Q)
        inputs = _tile(x + start * x_strides[1], step, p, x_strides[1], count, size).to(PRODUCT_TYPE)
        weights_B = _tile(B + start * B_strides[1], step, n, B_strides[1], count, states).to(PRODUCT_TYPE)
        if not LOCAL:
            if KEEP:
                _put(borders + chunk * area, h, p, n, states, size, states)
            weights_C = _tile(C + start * C_strides[1], step, n, C_strides[1], count, states).to(PRODUCT_TYPE)
            high = _step_values(steps, chunk, 1, plane, step, Q)
            low = _step_values(steps, chunk, 2, plane, step, Q)
            entering = _step_values(steps, chunk, 3, plane, step, Q)
            spread = tl.dot(weights_C, tl.trans(weights_B), input_precision=PRECISION)
            ahead = (high[:, None] - high[None, :]) + (low[:, None] - low[None, :])
            # The minimum changes nothing, but it gives the decays the layout of the product that uses them.
            ahead = tl.where(step[:, None] + k * zero >= step[None, :], ahead, tl.minimum(spread, FLOOR))
            spread *= tl.exp2(ahead) * delta[None, :]
            out = (
                tl.dot(weights_C, tl.trans(h.to(PRODUCT_TYPE)), input_precision=PRECISION) * entering[:, None]
            )
            out = tl.dot(spread.to(PRODUCT_TYPE), inputs, out, input_precision=PRECISION)
            if HAS_D:
                out += direct * inputs.to(tl.float32)
            _put(y + start * heads * size, out, step, p, heads * size, count, size)
        added = (weights_B * (delta * leaving)[:, None]).to(PRODUCT_TYPE)
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
    """Replace each part's last state (computed from zero) by the state it starts with, in place."""
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
        local_state = tl.load(local + slot * area + at, mask=at < area, other=0.0)
        tl.store(local + slot * area + at, carried, mask=at < area)
        carried = left * carried + local_state


@triton.jit
def ssd_state_gradients_kernel(
    steps, C, grad_y, entries, grad_borders, grad_first, through,
    length, heads, size, states, part_chunks, plane,
    C_strides, grad_y_strides,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PRODUCT_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    LOCAL: tl.constexpr, WANTS_FIRST: tl.constexpr, HAS_ENTRY: tl.constexpr,
):  # fmt: skip
    """The gradient of the state at each chunk's end, from the last chunk of a part of time to the first.

    `grad_first` is the gradient of the very first state; with LOCAL, of each part's first state if no
    gradient enters the part from later ones.
    """
    tiles = tl.cdiv(size, P)
    head, part, batch = tl.program_id(0) // tiles, tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    p = tl.program_id(0) % tiles * P + tl.arange(0, P)
    n = tl.arange(0, N)
    row = batch * heads + head
    C += batch * C_strides[0]
    grad_y += batch * grad_y_strides[0] + head * grad_y_strides[2]
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
        first = tl.maximum(first, 1)  # nobody needs the gradient before the first chunk
    for i in range(stop - first):
        k = stop - 1 - i
        start = batch * 0 + k * Q
        count = length - k * Q
        chunk = row * chunks + k
        entering = _step_values(steps, chunk, 3, plane, step, Q)
        all_left = _step_values(steps, chunk, 3, plane, Q - 1, Q)
        if not LOCAL:
            _put(grad_borders + chunk * area, grad, p, n, states, size, states)
        grad_out = _tile(grad_y + start * grad_y_strides[1], step, p, grad_y_strides[1], count, size).to(
            PRODUCT_TYPE
        )
        weights_C = _tile(C + start * C_strides[1], step, n, C_strides[1], count, states)
        entered = (weights_C * entering[:, None]).to(PRODUCT_TYPE)
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


@triton.jit(do_not_specialize=["zero"])
def ssd_backward_kernel(
    x, steps, B, C, D, borders, grad_borders, grad_y, grad_x, grad_B, grad_C, flows, links,
    length, heads, size, states, group_heads, plane, zero,
    x_strides, B_strides, C_strides, grad_y_strides,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr,
    PRODUCT_TYPE: tl.constexpr, PRECISION: tl.constexpr, HAS_D: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk for a group of heads, given the gradients of the states at its end.

    (Q, Q) matrices have input steps as rows and output steps as columns. grad_B and grad_C hold one share per
    group, (groups, B, L, N); `flows` and `links` (B, H, chunks) are read by `ssd_flows_kernel`.
    """
    k, group, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(length, Q)
    step = tl.arange(0, Q)
    start = batch * 0 + k * Q
    count = length - k * Q
    n = tl.arange(0, N)
    area = size * states
    x += batch * x_strides[0] + start * x_strides[1]
    B += batch * B_strides[0] + start * B_strides[1]
    C += batch * C_strides[0] + start * C_strides[1]
    grad_y += batch * grad_y_strides[0] + start * grad_y_strides[1]
    grad_x += (batch * length + start) * heads * size
    grad_scores = tl.zeros((Q, Q), tl.float32)
    sum_B = tl.zeros((Q, N), tl.float32)
    sum_C = tl.zeros((Q, N), tl.float32)
    first = group * group_heads
    for head in range(first, tl.minimum(first + group_heads, heads)):
        chunk = (batch * heads + head) * chunks + k
        direct = _head_value(D, head, HAS_D)
        delta = _step_values(steps, chunk, 0, plane, step, Q)
        high = _step_values(steps, chunk, 1, plane, step, Q)
        low = _step_values(steps, chunk, 2, plane, step, Q)
        entering = _step_values(steps, chunk, 3, plane, step, Q)
        leaving = _step_values(steps, chunk, 4, plane, step, Q)
        weights_B = _tile(B, step, n, B_strides[1], count, states).to(PRODUCT_TYPE)
        weights_C = _tile(C, step, n, C_strides[1], count, states).to(PRODUCT_TYPE)
        scores = tl.dot(weights_B, tl.trans(weights_C), input_precision=PRECISION)
        ahead = (high[None, :] - high[:, None]) + (low[None, :] - low[:, None])
        source = step[:, None] + head * zero
        decay = tl.exp2(tl.where(source <= step[None, :], ahead, tl.minimum(scores, FLOOR)))
        spread = (scores * decay).to(PRODUCT_TYPE)
        grad_spread = tl.zeros((Q, Q), tl.float32)
        along_B = tl.zeros((Q, N), tl.float32)
        along_C = tl.zeros((Q, N), tl.float32)
        link = tl.zeros((P, N), tl.float32)
        for tile in range(TILES):
            p = tile * P + tl.arange(0, P)
            outs = _tile(grad_y + head * grad_y_strides[2], step, p, grad_y_strides[1], count, size).to(
                PRODUCT_TYPE
            )
            border = _tile(borders + chunk * area, p, n, states, size, states)
            grad = _tile(grad_borders + chunk * area, p, n, states, size, states)
            grad_inputs = tl.dot(weights_B, tl.trans(grad.to(PRODUCT_TYPE)), input_precision=PRECISION)
            grad_inputs = tl.dot(spread, outs, grad_inputs * leaving[:, None], input_precision=PRECISION)
            grad_inputs *= delta[:, None]
            if HAS_D:
                grad_inputs += direct * outs.to(tl.float32)
            _put(grad_x + head * size, grad_inputs, step, p, heads * size, count, size)
            inputs = _tile(x + head * x_strides[2], step, p, x_strides[1], count, size).to(PRODUCT_TYPE)
            link += border.to(tl.float32) * grad.to(tl.float32)
            grad_spread = tl.dot(inputs, tl.trans(outs), grad_spread, input_precision=PRECISION)
            along_B = tl.dot(inputs, grad.to(PRODUCT_TYPE), along_B, input_precision=PRECISION)
            along_C = tl.dot(outs, border.to(PRODUCT_TYPE), along_C, input_precision=PRECISION)
        along_B *= leaving[:, None]
        along_C *= entering[:, None]
        sum_B += along_B * delta[:, None]
        sum_C += along_C
        into = flows + chunk * Q + step
        by_exit = tl.sum(along_B * weights_B, 1)
        tl.store(into, tl.sum(along_C * weights_C, 1))
        tl.store(into + plane, by_exit)
        # A step's own input isn't decayed. It is summed separately, because it would cost the other sums
        # digits.
        itself = tl.where(source == step[None, :], grad_spread, 0.0)
        tl.store(into + 2 * plane, tl.sum(itself, 1))
        tl.store(into + 3 * plane, tl.sum(itself * scores, 1))
        grad_spread *= decay
        grad_scores += grad_spread * delta[:, None]
        flow = tl.where(source < step[None, :], grad_spread * scores, 0.0)
        tl.store(into + 4 * plane, tl.sum(flow, 1))
        tl.store(into + 5 * plane, tl.sum(flow * delta[:, None], 0))
        tl.store(links + chunk, tl.sum(tl.sum(link, 1), 0))
    rounded = grad_scores.to(PRODUCT_TYPE)
    weights_B = _tile(B, step, n, B_strides[1], count, states).to(PRODUCT_TYPE)
    weights_C = _tile(C, step, n, C_strides[1], count, states).to(PRODUCT_TYPE)
    sum_B = tl.dot(rounded, weights_C, sum_B, input_precision=PRECISION)
    sum_C = tl.dot(tl.trans(rounded), weights_B, sum_C, input_precision=PRECISION)
    share = ((group * tl.num_programs(2) + batch) * length + start) * states
    _put(grad_B + share, sum_B, step, n, states, count, states)
    _put(grad_C + share, sum_C, step, n, states, count, states)


@triton.jit
def ssd_flows_kernel(
    dt, A, bias, reset, steps, flows, links, grad_dt, sums,
    length, heads, plane, dt_strides,
    Q: tl.constexpr, HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Turn the gradients of all running sums of logarithms into gradients of the steps.

    `sums` (B, chunks, 3, H) are shares of the gradients of A, D and the bias.
    """
    k, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(0)
    step = tl.arange(0, Q)
    inside = k * Q + step < length
    at = batch * 0 + k * Q + step
    chunk = (batch * heads + head) * chunks + k
    rate = tl.load(A + head).to(tl.float32)
    raw = tl.load(
        dt + batch * dt_strides[0] + at * dt_strides[1] + head * dt_strides[2], mask=inside, other=0.0
    )
    raw = raw.to(tl.float32) + _head_value(bias, head, HAS_BIAS)
    delta = _step_values(steps, chunk, 0, plane, step, Q)
    by_entry = _step_values(flows, chunk, 0, plane, step, Q)
    by_exit = _step_values(flows, chunk, 1, plane, step, Q)
    same = _step_values(flows, chunk, 2, plane, step, Q)
    by_itself = _step_values(flows, chunk, 3, plane, step, Q)
    by_source = _step_values(flows, chunk, 4, plane, step, Q)
    by_target = _step_values(flows, chunk, 5, plane, step, Q)
    all_left = _step_values(steps, chunk, 3, plane, Q - 1, Q)
    # A decay affects pairs of steps on both sides of it, the state that enters, what leaves and what passes
    # through.
    passing = by_exit * delta
    grad_logs = tl.cumsum(by_target - by_source * delta + by_entry, 0, reverse=True)
    grad_logs += tl.cumsum(passing, 0) - passing + all_left * tl.load(links + chunk)
    # Nothing passes a decay of zero, but the sums may leave a rounding error.
    grad_logs = tl.where(delta * rate > NOTHING, grad_logs, 0.0)
    if HAS_RESET:
        flags = tl.load(reset + batch * length + at, mask=inside, other=0)
        grad_logs = tl.where(flags != 0, 0.0, grad_logs)
    grad_delta = by_source + by_itself + by_exit + grad_logs * rate
    grad_raw = tl.where(inside, grad_delta * sigmoid(raw), 0.0)
    tl.store(
        grad_dt + (batch * length + at) * heads + head, grad_raw.to(grad_dt.dtype.element_ty), mask=inside
    )
    share = sums + (batch * chunks + k) * 3 * heads + head
    tl.store(share, tl.sum(grad_logs * delta, 0))
    tl.store(share + heads, tl.sum(same, 0))
    tl.store(share + 2 * heads, tl.sum(grad_raw, 0))


@triton.jit
def ssd_sum_kernel(shares_B, shares_C, grad_B, grad_C, groups, count, PIECE: tl.constexpr):
    """Add the groups' shares (groups, count) of dB and dC, in order."""
    at = tl.program_id(0).to(tl.int64) * PIECE + tl.arange(0, PIECE)
    sum_B = tl.zeros((PIECE,), tl.float32)
    sum_C = tl.zeros((PIECE,), tl.float32)
    for group in range(groups):
        sum_B += tl.load(shares_B + at + group * count, mask=at < count, other=0.0)
        sum_C += tl.load(shares_C + at + group * count, mask=at < count, other=0.0)
    tl.store(grad_B + at, sum_B.to(grad_B.dtype.element_ty), mask=at < count)
    tl.store(grad_C + at, sum_C.to(grad_C.dtype.element_ty), mask=at < count)
