"""Kernels that read one token: what each layer does for T = 1, with as few launches as its data flow allows.

Lanes of text are the last grid axis. Everything is float32. States are changed in place; keys and values lie
in a ring, the slot of step s being s mod (W - 1).
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(value):
    e = tl.exp2(-tl.abs(value) * 1.4426950408889634)
    return tl.where(value >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def begin_kernel(
    tokens, embedding, places, x, position, steps, fresh, eot, width, window,
    WIDTH: tl.constexpr, HAS_PLACES: tl.constexpr,
):  # fmt: skip
    """Look the token up; count it; note where it stands in its document and whether it begins one."""
    lane = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    token = tl.load(tokens + lane)
    begins = token == eot
    place = tl.where(begins, 0, tl.load(position + lane))
    row = tl.load(embedding + token * width + column, mask=column < width, other=0.0)
    if HAS_PLACES:
        row += tl.load(places + place % window * width + column, mask=column < width, other=0.0)
    tl.store(x + lane * width + column, row, mask=column < width)
    # `position` is the place of the token to come; the kernels of this step subtract 1.
    tl.store(position + lane, place + 1)
    tl.store(fresh + lane, tl.where(begins, 1, 0))
    tl.store(steps + lane, tl.load(steps + lane) + 1)


@triton.jit
def project_kernel(
    x, weight, norm, add, out, inputs, outputs, x_lane, out_lane,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ADD: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of a matrix times x, its RMS norm first, squared ReLU or a sum after."""
    lane = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, INPUTS)
    value = tl.load(x + lane * x_lane + column, mask=column < inputs, other=0.0)
    if HAS_NORM:
        value *= tl.rsqrt(tl.sum(value * value, 0) / inputs + 1e-6)
        value *= tl.load(norm + column, mask=column < inputs, other=0.0)
    mask = (row[:, None] < outputs) & (column[None, :] < inputs)
    tile = tl.load(weight + row[:, None].to(tl.int64) * inputs + column[None, :], mask=mask, other=0.0)
    total = tl.sum(tile.to(tl.float32) * value[None, :], 1)
    if SQUARED_RELU:
        total = tl.maximum(total, 0.0)
        total *= total
    if HAS_ADD:
        total += tl.load(add + lane * out_lane + row, mask=row < outputs, other=0.0)
    tl.store(out + lane * out_lane + row, total, mask=row < outputs)


@triton.jit
def attend_kernel(
    qkv, keys, values, position, steps, out, past, heads, half, base, scale,
    HALF: tl.constexpr, KEYS: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """One head: turn query and key, attend over the ring and the token itself, put the key in the ring."""
    head, lane = tl.program_id(0), tl.program_id(1)
    width = heads * half * 2
    column = tl.arange(0, HALF)
    real = column < half
    place = tl.load(position + lane) - 1
    step = tl.load(steps + lane) - 1
    row = qkv + lane * 3 * width + head * half * 2 + column
    query1 = tl.load(row, mask=real, other=0.0)
    query2 = tl.load(row + half, mask=real, other=0.0)
    key1 = tl.load(row + width, mask=real, other=0.0)
    key2 = tl.load(row + width + half, mask=real, other=0.0)
    value1 = tl.load(row + 2 * width, mask=real, other=0.0)
    value2 = tl.load(row + 2 * width + half, mask=real, other=0.0)
    if ROPE:
        # As the model does: far positions have no digits to lose in float64.
        rate = tl.exp2(-column.to(tl.float64) / half * tl.log2(base + column.to(tl.float64) * 0))
        angle = place.to(tl.float64) * rate
        cos, sin = tl.cos(angle).to(tl.float32), tl.sin(angle).to(tl.float32)
        turned = query1 * cos - query2 * sin
        query2 = query2 * cos + query1 * sin
        query1 = turned
        turned = key1 * cos - key2 * sin
        key2 = key2 * cos + key1 * sin
        key1 = turned
    top = tl.sum(query1 * key1 + query2 * key2, 0) * scale
    total = 1.0
    mixed1, mixed2 = value1, value2
    ring = ((lane * heads + head) * past).to(tl.int64) * half * 2
    for start in range(0, past, KEYS):
        slot = start + tl.arange(0, KEYS)
        age = (step - 1 - slot + past) % past + 1
        seen = (age <= place) & (slot < past)
        at = ring + slot[:, None] * half * 2 + column[None, :]
        mask = seen[:, None] & real[None, :]
        score = tl.load(keys + at, mask=mask, other=0.0) * query1[None, :]
        score += tl.load(keys + at + half, mask=mask, other=0.0) * query2[None, :]
        scores = tl.where(seen, tl.sum(score, 1) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        weights = tl.exp2(scores - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        old1 = tl.load(values + at, mask=mask, other=0.0)
        old2 = tl.load(values + at + half, mask=mask, other=0.0)
        mixed1 = mixed1 * shrink + tl.sum(weights[:, None] * old1, 0)
        mixed2 = mixed2 * shrink + tl.sum(weights[:, None] * old2, 0)
        top = higher
    tl.store(out + lane * width + head * half * 2 + column, mixed1 / total, mask=real)
    tl.store(out + lane * width + head * half * 2 + half + column, mixed2 / total, mask=real)
    if past > 0:
        # The slot held the oldest key: every thread has to have read it.
        tl.debug_barrier()
        at = ring + (step % past) * half * 2 + column
        tl.store(keys + at, key1, mask=real)
        tl.store(keys + at + half, key2, mask=real)
        tl.store(values + at, value1, mask=real)
        tl.store(values + at + half, value2, mask=real)


@triton.jit
def convolve_kernel(
    x, weight, bias, tail, fresh, out, width, x_lane, TAPS: tl.constexpr, CHANNELS: tl.constexpr
):
    """The activated convolution's newest output; the tail moves on."""
    lane = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    real = d < width
    begins = tl.load(fresh + lane) != 0
    newest = tl.load(x + lane * x_lane + d, mask=real, other=0.0)
    total = tl.load(bias + d, mask=real, other=0.0)
    rows = ()
    for k in tl.static_range(TAPS - 1):
        row = tl.load(tail + (lane * (TAPS - 1) + k) * width + d, mask=real, other=0.0)
        rows = rows + (tl.where(begins, 0.0, row),)
    rows = rows + (newest,)
    for k in tl.static_range(TAPS):
        total += tl.load(weight + d * TAPS + k, mask=real, other=0.0) * rows[k]
    for k in tl.static_range(TAPS - 1):
        tl.store(tail + (lane * (TAPS - 1) + k) * width + d, rows[k + 1], mask=real)
    tl.store(out + lane * width + d, total * _sigmoid(total), mask=real)


@triton.jit
def _normed(row, norm, index, size):
    value = tl.load(row + index, mask=index < size, other=0.0)
    value *= tl.rsqrt(tl.sum(value * value, 0) / size + 1e-6)
    return value * tl.load(norm + index, mask=index < size, other=0.0)


@triton.jit
def scan_kernel(
    x, projected, gate, dt_norm, B_norm, C_norm, dt_weight, dt_bias, A_log, D, hidden, fresh, out,
    width, rank, states, gate_lane,
    CHANNELS: tl.constexpr, RANK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One step of the selective scan, its step sizes, norms and gate included; the state moves on."""
    lane = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    r, n = tl.arange(0, RANK), tl.arange(0, STATES)
    real = d < width
    begins = tl.load(fresh + lane) != 0
    row = projected + lane * (rank + 2 * states)
    dt = _normed(row, dt_norm, r, rank)
    B = _normed(row + rank, B_norm, n, states)
    C = _normed(row + rank + states, C_norm, n, states)
    mask = real[:, None] & (r[None, :] < rank)
    weight = tl.load(dt_weight + d[:, None] * rank + r[None, :], mask=mask, other=0.0)
    raw = tl.sum(weight * dt[None, :], 1) + tl.load(dt_bias + d, mask=real, other=0.0)
    e = tl.exp2(-tl.abs(raw) * 1.4426950408889634)
    s = e / (2.0 + e)
    q = s * s
    series = 0.2 + q * (0.14285714 + q * (0.11111111 + q * (0.09090909 + q * 0.07692308)))
    delta = tl.maximum(raw, 0.0) + 2.0 * s * (1.0 + q * (0.33333333 + q * series))
    value = tl.load(x + lane * width + d, mask=real, other=0.0)
    mask = real[:, None] & (n[None, :] < states)
    tile = d[:, None] * states + n[None, :]
    rate = -tl.exp(tl.load(A_log + tile, mask=mask, other=0.0))
    state = hidden + lane * width * states + tile
    h = tl.load(state, mask=mask, other=0.0)
    h = tl.where(begins, 0.0, tl.exp(delta[:, None] * rate) * h) + (delta * value)[:, None] * B[None, :]
    tl.store(state, h, mask=mask)
    y = tl.sum(h * C[None, :], 1) + tl.load(D + d, mask=real, other=0.0) * value
    open_ = tl.load(gate + lane * gate_lane + d, mask=real, other=0.0)
    tl.store(out + lane * width + d, y * open_ * _sigmoid(open_), mask=real)


@triton.jit
def draw_kernel(logits, factors, seeds, drawn, best, where, vocab_size, pieces, PIECE: tl.constexpr):
    """The best of a piece of logits after temperature and Gumbel noise, which draws from the softmax.

    `factors` holds the factor of the logits and that of the noise (0 takes the most probable token).
    """
    piece, lane = tl.program_id(0), tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    value = tl.load(logits + lane * vocab_size + column, mask=column < vocab_size, other=float("-inf"))
    step = tl.load(drawn + lane)
    random = tl.rand(tl.load(seeds + lane), step.to(tl.int32) * (pieces * PIECE) + column)
    noise = -tl.log(-tl.log(tl.maximum(random, 1e-20)) + 1e-20)
    value = value * tl.load(factors) + noise * tl.load(factors + 1)
    tl.store(best + lane * pieces + piece, tl.max(value, 0))
    tl.store(where + lane * pieces + piece, piece * PIECE + tl.argmax(value, 0))


@triton.jit
def choose_kernel(best, where, tokens, written, drawn, pieces, room, PIECES: tl.constexpr):
    """The best of all pieces becomes the token, and is written down."""
    lane = tl.program_id(0)
    piece = tl.arange(0, PIECES)
    value = tl.load(best + lane * pieces + piece, mask=piece < pieces, other=float("-inf"))
    token = tl.load(where + lane * pieces + tl.argmax(value, 0)).to(tl.int64)
    step = tl.load(drawn + lane)
    tl.store(tokens + lane, token)
    tl.store(written + lane * room + step % room, token)
    tl.store(drawn + lane, step + 1)
