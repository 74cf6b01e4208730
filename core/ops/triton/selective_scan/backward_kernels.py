"""Triton kernels of the selective scan for the gradients; names as in `shared_kernels.py`."""
# ruff: noqa: RUF005, SIM102
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
    _weights,
)


@triton.jit(do_not_specialize=["unaligned", "length", "chunk", "chunks"])
def scan_backward_local_kernel(
    dt, rates, rows, z, bias, reset, grad_y, local, sums,
    length, width, chunk, states, chunks,
    dt_strides, z_strides,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    EVEN: tl.constexpr, FULL: tl.constexpr,
    WEIGHTS_AHEAD: tl.constexpr,
):  # fmt: skip
    """The state gradient that a chunk passes to the chunk before it if it receives none from later chunks.

    Also the chunk's sum of step sizes.
    """
    part, batch = tl.program_id(2) + 1, tl.program_id(1).to(tl.int64)  # the first one passes nothing on
    dt_batch, dt_time = dt_strides
    z_batch, z_time = z_strides
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rate = tl.load(rates + tile, mask=tile_mask, other=0.0)
    offset = _channel_values(bias, d, width, HAS_BIAS)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    blocks = tl.cdiv(stop - first, BLOCK)
    carried = tl.zeros((N, CHANNELS), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    dt_rows = dt + batch * dt_batch + d
    grad_rows = grad_y + batch * length * width + d
    z_rows = z + batch * z_batch + d if HAS_Z else dt_rows
    start = first + (blocks - 1) * BLOCK
    at = batch * 0 + start
    raws = _rows(dt_rows + at * dt_time, dt_time, d, width, start, stop, BLOCK, FULL)
    grads = _rows(grad_rows + at * width, width, d, width, start, stop, BLOCK, FULL)
    gates = raws
    if HAS_Z:
        gates = _rows(z_rows + at * z_time, z_time, d, width, start, stop, BLOCK, FULL)
    row = rows + (batch * length + at) * (2 * N) + N
    weights = ()
    for k in tl.static_range(BLOCK - 1, BLOCK - 1 - WEIGHTS_AHEAD, -1):
        weights = weights + (_weights(row, start, k, stop, N, EVEN),)
    touched = tl.zeros((32,), tl.int32)
    for i in range(blocks):
        start = first + (blocks - 1 - i) * BLOCK
        now_dt, now_grad, now_z = raws, grads, gates
        at = batch * 0 + start
        following = tl.maximum(start - BLOCK, first)
        to = batch * 0 + following
        raws = _rows(dt_rows + to * dt_time, dt_time, d, width, following, stop, BLOCK, FULL)
        grads = _rows(grad_rows + to * width, width, d, width, following, stop, BLOCK, FULL)
        if HAS_Z:
            gates = _rows(z_rows + to * z_time, z_time, d, width, following, stop, BLOCK, FULL)
        seen = _prefetch(rows + (batch * length + to) * (2 * N), following, stop, N, BLOCK, EVEN)
        breaks = _breaks(reset, batch * length + at, start, stop, BLOCK, HAS_RESET)
        row = rows + (batch * length + at) * (2 * N) + N
        row_after = rows + (batch * length + to) * (2 * N) + N
        for k in tl.static_range(BLOCK - 1, -1, -1):
            t = start + k
            if k >= WEIGHTS_AHEAD:
                weights = weights + (_weights(row, start, k - WEIGHTS_AHEAD, stop, N, EVEN),)
            else:
                beyond = k - WEIGHTS_AHEAD + BLOCK
                weights = weights + (_weights(row_after, following, beyond, stop, N, EVEN),)
            grad = now_grad[k].to(tl.float32)
            if HAS_Z:
                gate = now_z[k].to(tl.float32)
                grad *= gate * sigmoid(gate)
            delta = _step_size(now_dt[k].to(tl.float32) + offset, t, stop, EVEN)
            total += delta
            if HAS_RESET:
                total += tl.where(breaks[k] < 0, 1e30, 0.0)
            decay = tl.exp2(delta[None, :] * rate + breaks[k])
            carried = decay * (carried + weights[0][:, None] * grad[None, :])
            weights = weights[1:]
        touched = touched ^ seen
    carried += tl.sum(touched & unaligned, 0).to(tl.float32)
    slot = (batch * chunks + part) * states * width
    tl.store(local + slot + tile, carried, mask=tile_mask)
    tl.store(sums + (batch * chunks + part) * width + d, total, mask=d < width)


@triton.jit(do_not_specialize=["unaligned", "length", "chunk"])
def scan_backward_kernel(
    x, dt, rates, rows, D, z, bias, reset, borders, grad_y, entries,
    grad_x, grad_dt, grad_z, grad_A, grad_BC, grad_D, grad_bias, grad_first,
    length, width, chunk, states,
    x_strides, dt_strides, z_strides, grad_z_strides,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    KEPT: tl.constexpr, ROWS_AT: tl.constexpr, BORDER_AT: tl.constexpr,
    EXCHANGE: tl.constexpr, ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr,
    HAS_ENTRY: tl.constexpr, HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, WANTS_FIRST: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
    WEIGHTS_AHEAD: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, walking backwards through its blocks, each of which begins with a border.

    EXCHANGE: how dB and dC are summed over channels: "" by plain reductions, otherwise by ASSEMBLY.
    """
    group, groups = tl.program_id(0), tl.num_programs(0)
    part, batch, chunks = tl.program_id(2), tl.program_id(1).to(tl.int64), tl.num_programs(2)
    x_batch, x_time = x_strides
    dt_batch, dt_time = dt_strides
    z_batch, z_time = z_strides
    lane = tl.arange(0, CHANNELS)
    d = group * CHANNELS + unaligned + lane
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rate = tl.load(rates + tile, mask=tile_mask, other=0.0)
    offset = _channel_values(bias, d, width, HAS_BIAS)
    direct = _channel_values(D, d, width, HAS_D)
    slot = batch * chunks + part
    if HAS_ENTRY:
        carried = tl.load(entries + slot * states * width + tile, mask=tile_mask, other=0.0)
    else:
        carried = tl.zeros((N, CHANNELS), tl.float32)
    sum_A = tl.zeros((N, CHANNELS), tl.float32)
    sum_D = tl.zeros((CHANNELS,), tl.float32)
    sum_bias = tl.zeros((CHANNELS,), tl.float32)
    # Where a lane writes the total that it receives from an exchange.
    if EXCHANGE == "tensor cores":
        mine_at = lane // 16 * 16 + lane % 4 * 4 + lane // 8 % 2 * 2 + lane // 4 % 2
    else:
        mine_at = lane // (CHANNELS // (2 * N) if CHANNELS >= 2 * N else 1)
    # Zero, but the compiler can't know that; otherwise it would keep the decays instead of recomputing them.
    nothing = unaligned.to(tl.float32)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    blocks = tl.cdiv(stop - first, BLOCK)
    x_rows = x + batch * x_batch + d
    dt_rows = dt + batch * dt_batch + d
    grad_rows = grad_y + batch * length * width + d
    z_rows = z + batch * z_batch + d if HAS_Z else x_rows
    border_tiles = _border_tiles(borders, batch, tl.cdiv(length, BLOCK), unaligned, N, CHANNELS)
    apart = groups * N * CHANNELS
    border_tiles += (batch * 0 + first // BLOCK) * apart
    begin = first + (blocks - 1) * BLOCK
    at = batch * 0 + begin
    border = tl.load(border_tiles + (batch * 0 + blocks - 1) * apart)
    inputs = _rows(x_rows + at * x_time, x_time, d, width, begin, stop, BLOCK, FULL)
    raws = _rows(dt_rows + at * dt_time, dt_time, d, width, begin, stop, BLOCK, FULL)
    grads = _rows(grad_rows + at * width, width, d, width, begin, stop, BLOCK, FULL)
    gates = inputs
    if HAS_Z:
        gates = _rows(z_rows + at * z_time, z_time, d, width, begin, stop, BLOCK, FULL)
    row = rows + (batch * length + at) * (2 * N)
    upcoming = ()
    for k in tl.static_range(WEIGHTS_AHEAD):
        upcoming = upcoming + (_both_weights(row, begin, k, stop, N, EVEN, HAS_Z),)
    touched = tl.zeros((32,), tl.int32)
    for i in range(blocks):
        begin = first + (blocks - 1 - i) * BLOCK
        at = batch * 0 + begin
        following = tl.maximum(begin - BLOCK, first)
        to = batch * 0 + following
        now_x, now_dt, now_grad, now_z, h = inputs, raws, grads, gates, border.to(tl.float32)
        seen = _prefetch(rows + (batch * length + following) * (2 * N), following, stop, N, BLOCK, EVEN)
        breaks = _breaks(reset, batch * length + at, begin, stop, BLOCK, HAS_RESET)
        row = rows + (batch * length + at) * (2 * N)
        row_after = rows + (batch * length + to) * (2 * N)
        steps = ()
        before = ()
        decays = ()
        grads_z = ()
        outs = ()
        for k in tl.static_range(BLOCK):
            t = begin + k
            if k + WEIGHTS_AHEAD < BLOCK:
                upcoming = upcoming + (_both_weights(row, begin, k + WEIGHTS_AHEAD, stop, N, EVEN, HAS_Z),)
            else:  # already on the way back
                back = 2 * BLOCK - 1 - WEIGHTS_AHEAD - k
                upcoming = upcoming + (_both_weights(row, begin, back, stop, N, EVEN, True),)
            weights_B, weights_C = upcoming[0]
            upcoming = upcoming[1:]
            before = before + (h,)
            steps = steps + (_step_size(now_dt[k].to(tl.float32) + offset, t, stop, EVEN),)
            decay = tl.exp2(steps[k][None, :] * rate + breaks[k])
            if k >= BLOCK - KEPT:
                decays = decays + (decay,)
            value = now_x[k].to(tl.float32)
            h = decay * h + (steps[k] * value)[None, :] * weights_B[:, None]
            if HAS_Z:
                plain = tl.sum(h * weights_C[:, None], 0) + direct * value
                out, gate = now_grad[k].to(tl.float32), now_z[k].to(tl.float32)
                opening = sigmoid(gate)
                silu = gate * opening
                grads_z = grads_z + (out * plain * (opening + silu * (1.0 - opening)),)
                outs = outs + (out * silu,)
        into = (batch * length + at) * width + d
        if HAS_Z:
            to_z = grad_z + batch * grad_z_strides[0] + at * grad_z_strides[1] + d
            for k in tl.static_range(BLOCK):
                _put(to_z, grads_z[k], d, width, begin + k, stop, FULL)
                to_z += grad_z_strides[1]
        # Results, last step first.
        grads_x = ()
        grads_dt = ()
        totals = ()
        for k in tl.static_range(BLOCK - 1, -1, -1):
            t = begin + k
            if k == ROWS_AT:
                inputs = _rows(x_rows + to * x_time, x_time, d, width, following, stop, BLOCK, FULL)
                raws = _rows(dt_rows + to * dt_time, dt_time, d, width, following, stop, BLOCK, FULL)
                grads = _rows(grad_rows + to * width, width, d, width, following, stop, BLOCK, FULL)
                if HAS_Z:
                    gates = _rows(z_rows + to * z_time, z_time, d, width, following, stop, BLOCK, FULL)
            if k == BORDER_AT:
                border = tl.load(border_tiles + (batch * 0 + tl.maximum(blocks - 2 - i, 0)) * apart)
            if k >= WEIGHTS_AHEAD:
                upcoming = upcoming + (_both_weights(row, begin, k - WEIGHTS_AHEAD, stop, N, EVEN, True),)
            else:  # already in the next span
                beyond = WEIGHTS_AHEAD - 1 - k
                upcoming = upcoming + (_both_weights(row_after, following, beyond, stop, N, EVEN, HAS_Z),)
            weights_B, weights_C = upcoming[0]
            upcoming = upcoming[1:]
            if k >= BLOCK - KEPT:
                decay = decays[k - (BLOCK - KEPT)]
            else:
                decay = tl.exp2(steps[k][None, :] * rate + (breaks[k] + nothing))
            value = now_x[k].to(tl.float32)
            if HAS_Z:
                out = outs[k]
            else:
                out = now_grad[k].to(tl.float32)
            grad = carried + weights_C[:, None] * out[None, :]
            along_B = grad * (steps[k] * value)[None, :]
            along_C = h * out[None, :]
            if EXCHANGE == "":
                share = grad_BC + ((batch * groups + group) * length + at + k) * (2 * N)
                tl.store(share + n, tl.sum(along_B, 1), mask=_inside(n, N, t, stop))
                tl.store(share + N + n, tl.sum(along_C, 1), mask=_inside(n, N, t, stop))
            else:
                mixed = tl.inline_asm_elementwise(
                    ASSEMBLY, CONSTRAINTS, [along_B, along_C], dtype=tl.int32, is_pure=True, pack=N
                )
                # Only a lane's first register holds a total; as integers, the zeros are optimized away.
                totals = totals + (tl.sum(mixed, 0).to(tl.float32, bitcast=True),)
            grad_input = tl.sum(grad * weights_B[:, None], 0)
            carried = grad * decay
            h = before[k]
            along_decay = carried * h
            sum_A += along_decay * steps[k][None, :]
            grad_delta = grad_input * value + tl.sum(along_decay * rate, 0) * 0.6931471805599453
            grad_raw = grad_delta * sigmoid(now_dt[k].to(tl.float32) + offset)
            if not EVEN:
                grad_raw = tl.where(t < stop, grad_raw, 0.0)
            grads_dt = grads_dt + (grad_raw,)
            grads_x = grads_x + (grad_input * steps[k] + direct * out,)
            sum_D += out * value
            sum_bias += grad_raw
        to_x, to_dt = grad_x + into, grad_dt + into
        shares = ((batch * groups + group) * length + at) * (2 * N)
        for k in tl.static_range(BLOCK):
            t = begin + k
            _put(to_x, grads_x[BLOCK - 1 - k], d, width, t, stop, FULL)
            _put(to_dt, grads_dt[BLOCK - 1 - k], d, width, t, stop, FULL)
            to_x += width
            to_dt += width
            if EXCHANGE != "":
                share = grad_BC + shares + k * 2 * N + mine_at
                if CHANNELS > 2 * N:
                    owner = lane % (CHANNELS // (2 * N)) == 0
                    tl.store(share, totals[BLOCK - 1 - k], mask=owner & (t < stop))
                elif EVEN:
                    tl.store(share, totals[BLOCK - 1 - k])
                else:
                    tl.store(share, totals[BLOCK - 1 - k], mask=(lane >= 0) & (t < stop))
        touched = touched ^ seen
    sum_A += tl.sum(touched & unaligned, 0).to(tl.float32)
    tl.store(grad_A + slot * states * width + tile, sum_A, mask=tile_mask)
    if HAS_D:
        tl.store(grad_D + slot * width + d, sum_D, mask=d < width)
    if HAS_BIAS:
        tl.store(grad_bias + slot * width + d, sum_bias, mask=d < width)
    if WANTS_FIRST:
        if part == 0:
            tl.store(grad_first + batch * states * width + tile, carried, mask=tile_mask)


@triton.jit(do_not_specialize=["length", "groups", "BC_programs", "batches", "slots"])
def scan_finish_kernel(
    shares_BC, shares_A, shares_D, shares_bias, grad_A, grad_B, grad_C, grad_D, grad_bias,
    length, groups, BC_programs, batches, slots, width, states,
    N: tl.constexpr, ITEMS: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Add shares in a fixed order: those of dB and dC over groups of channels, the others over slots.

    Programs: `BC_programs` for dB and dC of each batch row, then one per tile of channels for each of the
    `states` rows of dA, for dD and for the bias's gradient.
    """
    program = tl.program_id(0)
    deep = tl.arange(0, DEPTH)
    if program < BC_programs * batches:
        batch = (program // BC_programs).to(tl.int64)
        item = program % BC_programs * ITEMS + tl.arange(0, ITEMS)
        items = length * 2 * N
        total = tl.zeros((ITEMS,), tl.float32)
        for first in range(0, groups, DEPTH):
            group = first + deep
            inside = (group < groups)[:, None] & (item < items)[None, :]
            shares = shares_BC + (batch * groups + group)[:, None] * items + item[None, :]
            total += tl.sum(tl.load(shares, mask=inside, other=0.0).to(tl.float32), 0)
        n = item % N
        into = (batch * length + item // (2 * N)) * states + n
        valid = (item < items) & (n < states)
        is_C = item % (2 * N) >= N
        tl.store(grad_B + into, total, mask=valid & (is_C == 0))
        tl.store(grad_C + into, total, mask=valid & is_C)
    else:
        tiles = tl.cdiv(width, CHANNELS)
        index = program - BC_programs * batches
        kind = index // tiles
        d = index % tiles * CHANNELS + tl.arange(0, CHANNELS)
        bias_kind = states + 1 if HAS_D else states
        source, step = shares_A + kind * width, states * width
        if HAS_D:
            if kind == states:
                source, step = shares_D, width
        if HAS_BIAS:
            if kind == bias_kind:
                source, step = shares_bias, width
        sums = tl.zeros((CHANNELS,), tl.float32)
        for begin in range(0, slots, DEPTH):
            slot = (begin + deep).to(tl.int64)
            within = (slot < slots)[:, None] & (d < width)[None, :]
            sums += tl.sum(tl.load(source + slot[:, None] * step + d[None, :], mask=within, other=0.0), 0)
        tl.store(grad_A + d * states + kind, sums, mask=_inside(d, width, kind, states))
        if HAS_D:
            tl.store(grad_D + d, sums, mask=d < tl.where(kind == states, width, 0))
        if HAS_BIAS:
            tl.store(grad_bias + d, sums, mask=d < tl.where(kind == bias_kind, width, 0))
