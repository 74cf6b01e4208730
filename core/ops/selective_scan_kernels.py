"""Triton kernels of `selective_scan_triton.py`; its docstring says how they work together.

Tiles are (N, CHANNELS). Suffixes of strides: `_batch` from lane of text to lane of text, `_time` from step to
step; channels are always next to each other. EVEN: the length is a multiple of BLOCK. FULL: EVEN, and no
channel or state of a tile is padding, so that nothing needs a mask.
"""
# ruff: noqa: RUF005, SIM102
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softplus(value):
    """log(1 + exp(value)) to float32's precision everywhere, as 2 atanh(e / (2 + e)) for the logarithm."""
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    s = e / (2.0 + e)
    q = s * s
    tail = 0.2 + q * (0.14285714 + q * (0.11111111 + q * (0.09090909 + q * 0.07692308)))
    return tl.maximum(value, 0.0) + 2.0 * s * (1.0 + q * (0.33333333 + q * tail))


@triton.jit
def _sigmoid(value):
    """1 / (1 + exp(-value)) without overflow."""
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    return tl.where(value >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _inside(index, bound, t, stop):
    """index < bound where t < stop, else false."""
    return index < tl.where(t < stop, bound, 0)


@triton.jit
def _row(pointer, index, bound, t, stop, FULL: tl.constexpr):
    """A row as float32, zeros where not inside."""
    if FULL:
        return tl.load(pointer).to(tl.float32)
    return tl.load(pointer, mask=_inside(index, bound, t, stop), other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, value, index, bound, t, stop, FULL: tl.constexpr):
    """Write a row where it is inside."""
    if FULL:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=_inside(index, bound, t, stop))


@triton.jit
def _step_size(raw, t, stop, EVEN: tl.constexpr):
    """softplus(raw); zero, a step that changes nothing, from `stop` on."""
    delta = _softplus(raw)
    if not EVEN:
        delta = tl.where(t < stop, delta, 0.0)
    return delta


@triton.jit
def _forgets(reset, t, stop, HAS_RESET: tl.constexpr):
    """What to add to the exponent: minus infinity where the state is forgotten, else zero."""
    forgets = 0.0
    if HAS_RESET:
        flag = tl.load(reset, mask=t < stop, other=0)
        forgets = tl.where(flag != 0, float("-inf"), 0.0)
    return forgets


@triton.jit
def _channel_values(pointer, d, width, PRESENT: tl.constexpr):
    """One float32 a channel, zeros without a pointer."""
    values = d * 0.0
    if PRESENT:
        values = tl.load(pointer + d, mask=d < width, other=0.0).to(tl.float32)
    return values


# Rows are read ahead and results written at the end of a block: a read is not moved above an earlier write.
@triton.jit(do_not_specialize=["unaligned"])
def scan_forward_kernel(
    x, dt, A, B, C, D, z, bias, reset, entries, y, borders, last, sums,
    length, width, chunk, states,
    x_batch, x_time, dt_batch, dt_time, z_batch, z_time, B_batch, B_time, C_batch, C_time,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    LOCAL: tl.constexpr, KEEP_BORDERS: tl.constexpr, HAS_ENTRY: tl.constexpr, HAS_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Outputs and last state of a chunk; with LOCAL, its last state from zero and its sum of step sizes."""
    part, batch, chunks = tl.program_id(2), tl.program_id(1).to(tl.int64), tl.num_programs(2)
    # `unaligned` is 0, but the compiler cannot know: tiles keep one channel a lane instead of vectors.
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
    offset = _channel_values(bias, d, width, HAS_BIAS)
    direct = _channel_values(D, d, width, HAS_D)
    slot = (batch * chunks + part) * states * width
    if HAS_ENTRY:
        h = tl.load(entries + slot + tile, mask=tile_mask, other=0.0)
    else:
        h = tl.zeros((N, CHANNELS), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    blocks = tl.cdiv(length, BLOCK)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    for start in range(first, stop, BLOCK):
        at = batch * 0 + start  # 64 bits wide
        x_rows = x + batch * x_batch + at * x_time + d
        dt_rows = dt + batch * dt_batch + at * dt_time + d
        B_rows = B + batch * B_batch + at * B_time + n
        C_rows = C + batch * C_batch + at * C_time + n
        if KEEP_BORDERS:
            tl.store(borders + (batch * blocks + start // BLOCK) * states * width + tile, h, mask=tile_mask)
        raws = ()
        inputs = ()
        gates = ()
        breaks = ()
        for k in tl.static_range(BLOCK):
            t = start + k
            inputs = inputs + (_row(x_rows + k * x_time, d, width, t, stop, FULL),)
            raws = raws + (_row(dt_rows + k * dt_time, d, width, t, stop, FULL),)
            breaks = breaks + (_forgets(reset, t, stop, False),)
            if HAS_RESET:
                breaks = breaks[:k] + (_forgets(reset + batch * length + at + k, t, stop, True),)
            if HAS_Z and not LOCAL:
                z_row = z + batch * z_batch + (at + k) * z_time + d
                gates = gates + (_row(z_row, d, width, t, stop, FULL),)
        results = ()
        for k in tl.static_range(BLOCK):
            t = start + k
            delta = _step_size(raws[k] + offset, t, stop, EVEN)
            weights = _row(B_rows + k * B_time, n, states, t, stop, FULL)
            decay = tl.exp2(delta[None, :] * rates + breaks[k])
            h = decay * h + (delta * inputs[k])[None, :] * weights[:, None]
            if LOCAL:
                total += delta
                if HAS_RESET:
                    total += tl.where(breaks[k] < 0, 1e30, 0.0)
            else:
                out = tl.sum(h * _row(C_rows + k * C_time, n, states, t, stop, FULL)[:, None], 0)
                if HAS_D:
                    out += direct * inputs[k]
                if HAS_Z:
                    out *= gates[k] * _sigmoid(gates[k])
                results = results + (out,)
        if not LOCAL:
            y_rows = y + (batch * length + at) * width + d
            for k in tl.static_range(BLOCK):
                _put(y_rows + k * width, results[k], d, width, start + k, stop, FULL)
    if LOCAL:
        tl.store(last + slot + tile, h, mask=tile_mask)
        tl.store(sums + (batch * chunks + part) * width + d, total, mask=d < width)
    elif part == chunks - 1:
        tl.store(last + batch * states * width + tile, h, mask=tile_mask)


@triton.jit(do_not_specialize=["unaligned"])
def scan_carry_kernel(
    A, sums, first, local, chunks, width, states, unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, HAS_FIRST: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Turn what each chunk ends with, started from zero, into what it starts with, in place."""
    batch = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    mask = (n[:, None] < states) & (d[None, :] < width)
    rates = tl.load(A + tile, mask=mask, other=0.0)
    if HAS_FIRST:
        carried = tl.load(first + batch * states * width + tile, mask=mask, other=0.0)
    else:
        carried = tl.zeros((N, CHANNELS), tl.float32)
    for i in range(chunks):
        part = batch * chunks + i
        if BACKWARD:
            part = batch * chunks + chunks - 1 - i
        total = tl.load(sums + part * width + d, mask=d < width, other=0.0)
        found = tl.load(local + part * states * width + tile, mask=mask, other=0.0)
        tl.store(local + part * states * width + tile, carried, mask=mask)
        carried = tl.exp2(total[None, :] * rates) * carried + found


@triton.jit(do_not_specialize=["unaligned"])
def scan_backward_local_kernel(
    dt, A, C, z, bias, reset, grad_y, local,
    length, width, chunk, states,
    dt_batch, dt_time, z_batch, z_time, C_batch, C_time,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    EVEN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The state gradient that a chunk hands to the one before it if none reaches it from behind."""
    part, batch, chunks = tl.program_id(2), tl.program_id(1).to(tl.int64), tl.num_programs(2)
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
    offset = _channel_values(bias, d, width, HAS_BIAS)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    blocks = tl.cdiv(stop - first, BLOCK)
    carried = tl.zeros((N, CHANNELS), tl.float32)
    for i in range(blocks):
        start = first + (blocks - 1 - i) * BLOCK
        at = batch * 0 + start
        dt_rows = dt + batch * dt_batch + at * dt_time + d
        grad_rows = grad_y + (batch * length + at) * width + d
        C_rows = C + batch * C_batch + at * C_time + n
        raws = ()
        grads = ()
        for k in tl.static_range(BLOCK):
            t = start + k
            raws = raws + (_row(dt_rows + k * dt_time, d, width, t, stop, FULL),)
            grad = _row(grad_rows + k * width, d, width, t, stop, FULL)
            if HAS_Z:
                gate = _row(z + batch * z_batch + (at + k) * z_time + d, d, width, t, stop, FULL)
                grad *= gate * _sigmoid(gate)
            grads = grads + (grad,)
        for k in tl.static_range(BLOCK - 1, -1, -1):
            t = start + k
            delta = _step_size(raws[k] + offset, t, stop, EVEN)
            weights = _row(C_rows + k * C_time, n, states, t, stop, FULL)
            forgets = _forgets(reset, t, stop, False)
            if HAS_RESET:
                forgets = _forgets(reset + batch * length + at + k, t, stop, True)
            decay = tl.exp2(delta[None, :] * rates + forgets)
            carried = decay * (carried + weights[:, None] * grads[k][None, :])
    slot = (batch * chunks + part) * states * width
    tl.store(local + slot + tile, carried, mask=tile_mask)


@triton.jit(do_not_specialize=["unaligned"])
def scan_backward_kernel(
    x, dt, A, B, C, D, z, bias, reset, borders, grad_y, entries,
    grad_x, grad_dt, grad_z, grad_A, grad_BC, grad_D, grad_bias, grad_first,
    length, width, chunk, states,
    x_batch, x_time, dt_batch, dt_time, z_batch, z_time, B_batch, B_time, C_batch, C_time,
    unaligned,
    N: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr,
    EXCHANGE: tl.constexpr, ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr,
    HAS_ENTRY: tl.constexpr, HAS_RESET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr, WANTS_FIRST: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, walking backwards through its blocks, HALF steps of a block at a time.

    EXCHANGE: how dB and dC are summed over the channels: "" by plain reductions, else by ASSEMBLY.
    """
    group, groups = tl.program_id(0), tl.num_programs(0)
    part, batch, chunks = tl.program_id(2), tl.program_id(1).to(tl.int64), tl.num_programs(2)
    lane = tl.arange(0, CHANNELS)
    d = group * CHANNELS + unaligned + lane
    n = tl.arange(0, N)
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & (d[None, :] < width)
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
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
    # Where a lane writes the total that an exchange leaves with it.
    if EXCHANGE == "tensor cores":
        mine_at = lane // 16 * 16 + lane % 4 * 4 + lane // 8 % 2 * 2 + lane // 4 % 2
    else:
        mine_at = lane // (CHANNELS // (2 * N) if CHANNELS >= 2 * N else 1)
    # Zero, but the compiler cannot know: else it would keep the decays that are to be computed again.
    nothing = unaligned.to(tl.float32)
    HALVES: tl.constexpr = BLOCK // HALF
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    pieces = tl.cdiv(stop - first, BLOCK) * HALVES
    for i in range(pieces):
        begin = first + (pieces - 1 - i) * HALF
        block = begin // BLOCK
        border = (batch * tl.cdiv(length, BLOCK) + block) * states * width
        h = tl.load(borders + border + tile, mask=tile_mask, other=0.0)
        # From the border to the states of this half.
        for start in range(block * BLOCK, begin, HALF):
            at = batch * 0 + start
            for k in tl.static_range(HALF):
                t = start + k
                x_row = _row(x + batch * x_batch + (at + k) * x_time + d, d, width, t, stop, FULL)
                raw = _row(dt + batch * dt_batch + (at + k) * dt_time + d, d, width, t, stop, FULL)
                weights = _row(B + batch * B_batch + (at + k) * B_time + n, n, states, t, stop, FULL)
                forgets = 0.0
                if HAS_RESET:
                    forgets = _forgets(reset + batch * length + at + k, t, stop, True)
                delta = _step_size(raw + offset, t, stop, EVEN)
                decay = tl.exp2(delta[None, :] * rates + forgets)
                h = decay * h + (delta * x_row)[None, :] * weights[:, None]
        at = batch * 0 + begin
        x_rows = x + batch * x_batch + at * x_time + d
        dt_rows = dt + batch * dt_batch + at * dt_time + d
        B_rows = B + batch * B_batch + at * B_time + n
        C_rows = C + batch * C_batch + at * C_time + n
        plain = (batch * length + at) * width + d
        raws = ()
        inputs = ()
        outs = ()
        gates = ()
        breaks = ()
        for k in tl.static_range(HALF):
            t = begin + k
            inputs = inputs + (_row(x_rows + k * x_time, d, width, t, stop, FULL),)
            raws = raws + (_row(dt_rows + k * dt_time, d, width, t, stop, FULL) + offset,)
            outs = outs + (_row(grad_y + plain + k * width, d, width, t, stop, FULL),)
            if HAS_RESET:
                breaks = breaks + (_forgets(reset + batch * length + at + k, t, stop, True),)
            else:
                breaks = breaks + (0.0,)
            if HAS_Z:
                z_row = z + batch * z_batch + (at + k) * z_time + d
                gates = gates + (_row(z_row, d, width, t, stop, FULL),)
        steps = ()
        before = ()
        for k in tl.static_range(HALF):
            t = begin + k
            before = before + (h,)
            steps = steps + (_step_size(raws[k], t, stop, EVEN),)
            weights = _row(B_rows + k * B_time, n, states, t, stop, FULL)
            decay = tl.exp2(steps[k][None, :] * rates + breaks[k])
            h = decay * h + (steps[k] * inputs[k])[None, :] * weights[:, None]
        # Results, newest step first.
        grads_x = ()
        grads_dt = ()
        grads_z = ()
        totals = ()
        for k in tl.static_range(HALF - 1, -1, -1):
            t = begin + k
            weights_B = _row(B_rows + k * B_time, n, states, t, stop, FULL)
            weights_C = _row(C_rows + k * C_time, n, states, t, stop, FULL)
            decay = tl.exp2(steps[k][None, :] * rates + (breaks[k] + nothing))
            out = outs[k]
            if HAS_Z:
                value = tl.sum(h * weights_C[:, None], 0) + direct * inputs[k]
                sigmoid = _sigmoid(gates[k])
                silu = gates[k] * sigmoid
                grads_z = grads_z + (out * value * (sigmoid + silu * (1.0 - sigmoid)),)
                out = out * silu
            grad = carried + weights_C[:, None] * out[None, :]
            along_B = grad * (steps[k] * inputs[k])[None, :]
            along_C = h * out[None, :]
            if EXCHANGE == "":
                row = grad_BC + ((batch * groups + group) * length + at + k) * (2 * N)
                tl.store(row + n, tl.sum(along_B, 1), mask=_inside(n, N, t, stop))
                tl.store(row + N + n, tl.sum(along_C, 1), mask=_inside(n, N, t, stop))
            else:
                mixed = tl.inline_asm_elementwise(
                    ASSEMBLY, CONSTRAINTS, [along_B, along_C], dtype=tl.int32, is_pure=True, pack=N
                )
                # Only the first register of a lane holds a total; as integers the zeros fold away.
                totals = totals + (tl.sum(mixed, 0).to(tl.float32, bitcast=True),)
            grad_input = tl.sum(grad * weights_B[:, None], 0)
            carried = grad * decay
            h = before[k]
            along_decay = carried * h
            sum_A += along_decay * steps[k][None, :]
            grad_delta = grad_input * inputs[k] + tl.sum(along_decay * rates, 0) * 0.6931471805599453
            grad_raw = grad_delta * _sigmoid(raws[k])
            if not EVEN:
                grad_raw = tl.where(t < stop, grad_raw, 0.0)
            grads_dt = grads_dt + (grad_raw,)
            grads_x = grads_x + (grad_input * steps[k] + direct * out,)
            sum_D += out * inputs[k]
            sum_bias += grad_raw
        for k in tl.static_range(HALF):
            t = begin + k
            into = plain + k * width
            _put(grad_x + into, grads_x[HALF - 1 - k], d, width, t, stop, FULL)
            _put(grad_dt + into, grads_dt[HALF - 1 - k], d, width, t, stop, FULL)
            if HAS_Z:
                _put(grad_z + into, grads_z[HALF - 1 - k], d, width, t, stop, FULL)
            if EXCHANGE != "":
                row = grad_BC + ((batch * groups + group) * length + at + k) * (2 * N)
                owner = tl.where(t < stop, CHANNELS, 0)
                if CHANNELS > 2 * N:
                    owner = tl.where(lane % (CHANNELS // (2 * N)) == 0, owner, 0)
                tl.store(row + mine_at, totals[HALF - 1 - k], mask=lane < owner)
    tl.store(grad_A + slot * states * width + tile, sum_A, mask=tile_mask)
    if HAS_D:
        tl.store(grad_D + slot * width + d, sum_D, mask=d < width)
    if HAS_BIAS:
        tl.store(grad_bias + slot * width + d, sum_bias, mask=d < width)
    if WANTS_FIRST:
        if part == 0:
            tl.store(grad_first + batch * states * width + tile, carried, mask=tile_mask)
