"""Triton kernels of `selective_scan_triton.py`; its docstring says how they work together.

Tiles are (N, CHANNELS). Suffixes of strides: `_batch` from lane of text to lane of text, `_time` from step to
step; channels are always next to each other. EVEN: the length is a multiple of BLOCK. FULL: EVEN, and no
channel or state of a tile is padding, so that nothing needs a mask.
"""
# ruff: noqa: ANN001, ANN202
# mypy: disallow-untyped-defs=False

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
def _row(pointer, index, stride, inside, EVEN: tl.constexpr):
    """Row `index` as float32, zeros where not `inside`."""
    if EVEN:
        return tl.load(pointer + index * stride).to(tl.float32)
    return tl.load(pointer + index * stride, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _step_size(raw, bias, inside, EVEN: tl.constexpr):
    """softplus(raw + bias); zero, a step that changes nothing, where not `inside`."""
    delta = _softplus(raw + bias)
    if not EVEN:
        delta = tl.where(inside, delta, 0.0)
    return delta


@triton.jit
def _forgets(reset, index, inside, HAS_RESET: tl.constexpr):
    """What to add to the exponent: minus infinity where the state is forgotten, else zero."""
    forgets = 0.0
    if HAS_RESET:
        flag = tl.load(reset + index, mask=inside, other=0)
        forgets = tl.where(flag != 0, float("-inf"), 0.0)
    return forgets


@triton.jit(do_not_specialize=["unaligned"])
def forward_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    bias,
    reset,
    entries,
    y,
    borders,
    last,
    sums,
    length,
    width,
    chunk,
    states,
    x_batch,
    x_time,
    dt_batch,
    dt_time,
    z_batch,
    z_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    unaligned,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOCAL: tl.constexpr,
    KEEP_BORDERS: tl.constexpr,
    HAS_ENTRY: tl.constexpr,
    HAS_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
):
    """Outputs and last state of a chunk; with LOCAL, its last state from zero and its sum of step sizes."""
    part, batch, chunks = tl.program_id(2), tl.program_id(1), tl.num_programs(2)
    # `unaligned` is 0, but the compiler cannot know: tiles keep one channel a lane instead of vectors.
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    real = d < width
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & real[None, :]
    wide_batch = batch.to(tl.int64)
    zero = wide_batch * 0  # makes indices over time 64 bits wide
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=real, other=0.0).to(tl.float32)
    if HAS_D:
        direct = tl.load(D + d, mask=real, other=0.0).to(tl.float32)
    x_rows = x + wide_batch * x_batch + d
    dt_rows = dt + wide_batch * dt_batch + d
    if HAS_Z:
        z_rows = z + wide_batch * z_batch + d
    B_rows = B + wide_batch * B_batch + n
    C_rows = C + wide_batch * C_batch + n
    if not LOCAL:
        y_rows = y + wide_batch * length * width + d
    reset_row = wide_batch * length
    slot = (wide_batch * chunks + part) * states * width
    if HAS_ENTRY:
        h = tl.load(entries + slot + tile, mask=tile_mask, other=0.0)
    else:
        h = tl.zeros((N, CHANNELS), tl.float32)
    total = tl.zeros((CHANNELS,), tl.float32)
    blocks = tl.cdiv(length, BLOCK)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    for start in range(first, stop, BLOCK):
        if KEEP_BORDERS:
            border = (wide_batch * blocks + start // BLOCK) * states * width
            tl.store(borders + border + tile, h, mask=tile_mask)
        steps = ()
        inputs = ()
        gates = ()
        for k in tl.static_range(BLOCK):
            t = zero + start + k
            inside = _inside(d, width, t, stop)
            inputs = inputs + (_row(x_rows, t, x_time, inside, FULL),)
            steps = steps + (_row(dt_rows, t, dt_time, inside, FULL),)
            if HAS_Z and not LOCAL:
                gates = gates + (_row(z_rows, t, z_time, inside, FULL),)
        for k in tl.static_range(BLOCK):
            t = zero + start + k
            inside = t < stop
            delta = _step_size(steps[k], offset, inside, EVEN)
            weights = _row(B_rows, t, B_time, _inside(n, states, t, stop), FULL)
            forgets = _forgets(reset, reset_row + t, inside, HAS_RESET)
            decay = tl.exp2(delta[None, :] * rates + forgets)
            h = decay * h + (delta * inputs[k])[None, :] * weights[:, None]
            if LOCAL:
                total += delta
                if HAS_RESET:
                    total += tl.where(forgets < 0, 1e30, 0.0)
            else:
                out = tl.sum(h * _row(C_rows, t, C_time, _inside(n, states, t, stop), FULL)[:, None], 0)
                if HAS_D:
                    out += direct * inputs[k]
                if HAS_Z:
                    out *= gates[k] * _sigmoid(gates[k])
                if FULL:
                    tl.store(y_rows + t * width, out)
                else:
                    tl.store(y_rows + t * width, out, mask=_inside(d, width, t, stop))
    if LOCAL:
        tl.store(last + slot + tile, h, mask=tile_mask)
        tl.store(sums + (wide_batch * chunks + part) * width + d, total, mask=real)
    elif part == chunks - 1:
        tl.store(last + wide_batch * states * width + tile, h, mask=tile_mask)


@triton.jit(do_not_specialize=["unaligned"])
def carry_kernel(
    A,
    sums,
    first,
    local,
    chunks,
    width,
    states,
    unaligned,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    BACKWARD: tl.constexpr,
):
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
def backward_local_kernel(
    dt,
    A,
    C,
    z,
    bias,
    reset,
    grad_y,
    local,
    length,
    width,
    chunk,
    states,
    dt_batch,
    dt_time,
    z_batch,
    z_time,
    C_batch,
    C_time,
    unaligned,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_Z: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
):
    """The state gradient that a chunk hands to the one before it if none reaches it from behind."""
    part, batch, chunks = tl.program_id(2), tl.program_id(1), tl.num_programs(2)
    d = tl.program_id(0) * CHANNELS + unaligned + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    real = d < width
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & real[None, :]
    wide_batch = batch.to(tl.int64)
    zero = wide_batch * 0  # makes indices over time 64 bits wide
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=real, other=0.0).to(tl.float32)
    dt_rows = dt + wide_batch * dt_batch + d
    if HAS_Z:
        z_rows = z + wide_batch * z_batch + d
    C_rows = C + wide_batch * C_batch + n
    grad_rows = grad_y + wide_batch * length * width + d
    reset_row = wide_batch * length
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    carried = tl.zeros((N, CHANNELS), tl.float32)
    for i in range(tl.cdiv(stop - first, BLOCK)):
        start = first + (tl.cdiv(stop - first, BLOCK) - 1 - i) * BLOCK
        steps = ()
        grads = ()
        for k in tl.static_range(BLOCK):
            t = zero + start + k
            inside = _inside(d, width, t, stop)
            steps = steps + (_row(dt_rows, t, dt_time, inside, FULL),)
            grad = _row(grad_rows, t, width, inside, FULL)
            if HAS_Z:
                gate = _row(z_rows, t, z_time, inside, FULL)
                grad *= gate * _sigmoid(gate)
            grads = grads + (grad,)
        for k in tl.static_range(BLOCK - 1, -1, -1):
            t = zero + start + k
            inside = t < stop
            delta = _step_size(steps[k], offset, inside, EVEN)
            weights = _row(C_rows, t, C_time, _inside(n, states, t, stop), FULL)
            forgets = _forgets(reset, reset_row + t, inside, HAS_RESET)
            decay = tl.exp2(delta[None, :] * rates + forgets)
            carried = decay * (carried + weights[:, None] * grads[k][None, :])
    slot = (wide_batch * chunks + part) * states * width
    tl.store(local + slot + tile, carried, mask=tile_mask)


@triton.jit(do_not_specialize=["unaligned"])
def backward_kernel(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    bias,
    reset,
    borders,
    grad_y,
    entries,
    grad_x,
    grad_dt,
    grad_z,
    grad_A,
    grad_BC,
    grad_D,
    grad_bias,
    grad_first,
    length,
    width,
    chunk,
    states,
    x_batch,
    x_time,
    dt_batch,
    dt_time,
    z_batch,
    z_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    unaligned,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVES: tl.constexpr,
    EXCHANGE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    HAS_ENTRY: tl.constexpr,
    HAS_RESET: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    WANTS_FIRST: tl.constexpr,
    EVEN: tl.constexpr,
    FULL: tl.constexpr,
):
    """All gradients of a chunk, walking backwards through its blocks."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    part, batch, chunks = tl.program_id(2), tl.program_id(1), tl.num_programs(2)
    lane = tl.arange(0, CHANNELS)
    d = group * CHANNELS + unaligned + lane
    n = tl.arange(0, N)
    real = d < width
    tile = n[:, None] * width + d[None, :]
    tile_mask = (n[:, None] < states) & real[None, :]
    wide_batch = batch.to(tl.int64)
    zero = wide_batch * 0  # makes indices over time 64 bits wide
    rates = tl.load(A + tile, mask=tile_mask, other=0.0)
    offset = 0.0
    if HAS_BIAS:
        offset = tl.load(bias + d, mask=real, other=0.0).to(tl.float32)
    if HAS_D:
        direct = tl.load(D + d, mask=real, other=0.0).to(tl.float32)
    x_rows = x + wide_batch * x_batch + d
    dt_rows = dt + wide_batch * dt_batch + d
    if HAS_Z:
        z_rows = z + wide_batch * z_batch + d
    B_rows = B + wide_batch * B_batch + n
    C_rows = C + wide_batch * C_batch + n
    plain = wide_batch * length * width + d
    reset_row = wide_batch * length
    sums_row = grad_BC + (wide_batch * groups + group) * length * (2 * N)
    slot = wide_batch * chunks + part
    if HAS_ENTRY:
        carried = tl.load(entries + slot * states * width + tile, mask=tile_mask, other=0.0)
    else:
        carried = tl.zeros((N, CHANNELS), tl.float32)
    sum_A = tl.zeros((N, CHANNELS), tl.float32)
    sum_D = tl.zeros((CHANNELS,), tl.float32)
    sum_bias = tl.zeros((CHANNELS,), tl.float32)
    # Zero, but the compiler cannot know: else it would keep what is to be computed again.
    nothing = unaligned.to(tl.float32)
    HALF: tl.constexpr = BLOCK // HALVES
    blocks = tl.cdiv(length, BLOCK)
    first = part * chunk
    stop = tl.minimum(first + chunk, length)
    for i in range(tl.cdiv(stop - first, BLOCK)):
        start = first + (tl.cdiv(stop - first, BLOCK) - 1 - i) * BLOCK
        border = (wide_batch * blocks + start // BLOCK) * states * width
        entry = tl.load(borders + border + tile, mask=tile_mask, other=0.0)
        inputs = ()
        raws = ()
        for k in tl.static_range(BLOCK):
            t = zero + start + k
            inside = _inside(d, width, t, stop)
            inputs = inputs + (_row(x_rows, t, x_time, inside, FULL),)
            raws = raws + (_row(dt_rows, t, dt_time, inside, FULL),)
        steps = ()
        for k in tl.static_range(BLOCK):
            steps = steps + (_step_size(raws[k], offset, (start + k) < stop, EVEN),)
        for half in tl.static_range(HALVES - 1, -1, -1):
            raws = ()
            outs = ()
            gates = ()
            for k in tl.static_range(half * HALF, half * HALF + HALF):
                t = zero + start + k
                inside = _inside(d, width, t, stop)
                raws = raws + (_row(dt_rows, t, dt_time, inside, FULL) + offset,)
                outs = outs + (_row(grad_y + plain, t, width, inside, FULL),)
                if HAS_Z:
                    gates = gates + (_row(z_rows, t, z_time, inside, FULL),)
            # Forward again to the states of this half, from the border.
            h = entry
            before = ()
            for k in tl.static_range(half * HALF + HALF):
                t = zero + start + k
                inside = t < stop
                if k >= half * HALF:
                    before = before + (h,)
                weights = _row(B_rows, t, B_time, _inside(n, states, t, stop), FULL)
                forgets = _forgets(reset, reset_row + t, inside, HAS_RESET) + nothing * (1 + half)
                decay = tl.exp2(steps[k][None, :] * rates + forgets)
                h = decay * h + (steps[k] * inputs[k])[None, :] * weights[:, None]
            for k in tl.static_range(half * HALF + HALF - 1, half * HALF - 1, -1):
                t = zero + start + k
                inside = t < stop
                state_mask = _inside(n, states, t, stop)
                weights_B = _row(B_rows, t, B_time, state_mask, FULL)
                weights_C = _row(C_rows, t, C_time, state_mask, FULL)
                forgets = _forgets(reset, reset_row + t, inside, HAS_RESET)
                decay = tl.exp2(steps[k][None, :] * rates + (forgets - nothing))
                out = outs[k - half * HALF]
                if HAS_Z:
                    value = tl.sum(h * weights_C[:, None], 0)
                    if HAS_D:
                        value += direct * inputs[k]
                    sigmoid = _sigmoid(gates[k - half * HALF])
                    silu = gates[k - half * HALF] * sigmoid
                    slope = sigmoid + silu * (1.0 - sigmoid)
                    tl.store(grad_z + plain + t * width, out * value * slope, mask=_inside(d, width, t, stop))
                    out = out * silu
                grad = carried + weights_C[:, None] * out[None, :]
                along_B = grad * (steps[k] * inputs[k])[None, :]
                along_C = h * out[None, :]
                row = sums_row + t * (2 * N)
                if EXCHANGE:
                    mixed = tl.inline_asm_elementwise(
                        ASSEMBLY, CONSTRAINTS, [along_B, along_C], dtype=tl.int32, is_pure=True, pack=N
                    )
                    # Only the first register of a lane holds a total; as integers the zeros fold away.
                    mine = tl.sum(mixed, 0).to(tl.float32, bitcast=True)
                    tl.store(row + lane // (CHANNELS // (2 * N)), mine, mask=lane % (CHANNELS // (2 * N)) < tl.where(inside, 1, 0))
                else:
                    tl.store(row + n, tl.sum(along_B, 1), mask=_inside(n, N, t, stop))
                    tl.store(row + N + n, tl.sum(along_C, 1), mask=_inside(n, N, t, stop))
                grad_input = tl.sum(grad * weights_B[:, None], 0)
                carried = grad * decay
                h = before[k - half * HALF]
                along_decay = carried * h
                sum_A += along_decay * steps[k][None, :]
                grad_delta = grad_input * inputs[k] + tl.sum(along_decay * rates, 0) * 0.6931471805599453
                grad_raw = grad_delta * _sigmoid(raws[k - half * HALF])
                if not EVEN:
                    grad_raw = tl.where(inside, grad_raw, 0.0)
                result = grad_input * steps[k]
                if HAS_D:
                    result += direct * out
                    sum_D += out * inputs[k]
                sum_bias += grad_raw
                if FULL:
                    tl.store(grad_x + plain + t * width, result)
                    tl.store(grad_dt + plain + t * width, grad_raw)
                else:
                    tl.store(grad_x + plain + t * width, result, mask=_inside(d, width, t, stop))
                    tl.store(grad_dt + plain + t * width, grad_raw, mask=_inside(d, width, t, stop))
    tl.store(grad_A + slot * states * width + tile, sum_A, mask=tile_mask)
    if HAS_D:
        tl.store(grad_D + slot * width + d, sum_D, mask=real)
    if HAS_BIAS:
        tl.store(grad_bias + slot * width + d, sum_bias, mask=real)
    if WANTS_FIRST:
        if part == 0:
            tl.store(grad_first + wide_batch * states * width + tile, carried, mask=tile_mask)
