"""Kernels that read one token: each layer for T = 1, with as few launches as the data flow allows.

    embed -> for each layer:  linear (norm first) -> attend | conv step, selective scan or SSD step
                              linear (adds x) -> linear (norm first, squared ReLU) -> linear (adds x)
          -> linear (norm first): logits

The batch row is the last grid axis. Everything is float32. States are changed in place; keys and values lie
in a ring, step s at s mod (W - 1).
"""
# ruff: noqa: RUF005
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.activations import sigmoid, softplus


@triton.jit
def embed_kernel(
    tokens, embedding, position_embedding, x, position, steps, doc_start, inv_freq, rotations, eot, width,
    window, WIDTH: tl.constexpr, FREQUENCIES: tl.constexpr, LEARNED: tl.constexpr,
):  # fmt: skip
    """Look up the token, count it, and store its position in its document and whether it starts one.

    `rotations` (B, 2, FREQUENCIES) receives cosine and sine of its position times `inv_freq`, for all layers.
    """
    batch = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    token = tl.load(tokens + batch)
    starts = token == eot
    pos = tl.where(starts, 0, tl.load(position + batch))
    row = tl.load(embedding + token * width + column, mask=column < width, other=0.0)
    if LEARNED:
        row += tl.load(position_embedding + pos % window * width + column, mask=column < width, other=0.0)
    tl.store(x + batch * width + column, row, mask=column < width)
    # In float64, as in the model, so that far positions lose no digits.
    i = tl.arange(0, FREQUENCIES)
    angle = pos.to(tl.float64) * tl.load(inv_freq + i)
    tl.store(rotations + batch * 2 * FREQUENCIES + i, tl.cos(angle).to(tl.float32))
    tl.store(rotations + (batch * 2 + 1) * FREQUENCIES + i, tl.sin(angle).to(tl.float32))
    # `position` is the next token's; the kernels of this step subtract 1.
    tl.store(position + batch, pos + 1)
    tl.store(doc_start + batch, tl.where(starts, 1, 0))
    tl.store(steps + batch, tl.load(steps + batch) + 1)


@triton.jit
def linear_kernel(
    x, weight, norm, add, out, inputs, outputs, x_stride, out_stride,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ADD: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of a matrix times x, optionally after an RMS norm and before squared ReLU or a sum."""
    batch = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, INPUTS)
    value = tl.load(x + batch * x_stride + column, mask=column < inputs, other=0.0)
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
        total += tl.load(add + batch * out_stride + row, mask=row < outputs, other=0.0)
    tl.store(out + batch * out_stride + row, total, mask=row < outputs)


@triton.jit
def _rotated(row, rotation, column, real, half, frequencies, ROPE: tl.constexpr):
    """A query or key rotated by its position; its two halves hold the two coordinates of each pair."""
    value = tl.load(row + column, mask=real, other=0.0)
    if ROPE:
        first = column < half
        partner = tl.load(row + tl.where(first, column + half, column - half), mask=real, other=0.0)
        pair = rotation + tl.where(first, column, column - half)
        cos, sin = tl.load(pair, mask=real, other=0.0), tl.load(pair + frequencies, mask=real, other=0.0)
        value = value * cos + tl.where(first, -partner, partner) * sin
    return value


@triton.jit
def attend_kernel(
    qkv, keys, values, position, steps, rotations, out, past, heads, half, frequencies, scale,
    SIZE: tl.constexpr, KEYS: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """One head: rotate query and key, attend over the ring and the token itself, put the key in the ring.

    `rotations` begins with this layer's; one batch row has `frequencies`.
    """
    head, batch = tl.program_id(0), tl.program_id(1)
    size = 2 * half
    width = heads * size
    column = tl.arange(0, SIZE)
    real = column < size
    pos = tl.load(position + batch) - 1
    step = tl.load(steps + batch) - 1
    # The previous step's slot and this one's; a window of one token has none.
    slots = tl.maximum(past, 1)
    newest, oldest = ((step + slots - 1) % slots).to(tl.int32), (step % slots).to(tl.int32)
    row = qkv + batch * 3 * width + head * size
    rotation = rotations + batch * 2 * frequencies
    query = _rotated(row, rotation, column, real, half, frequencies, ROPE) * scale
    key = _rotated(row + width, rotation, column, real, half, frequencies, ROPE)
    value = tl.load(row + 2 * width + column, mask=real, other=0.0)
    top = tl.sum(query * key, 0)
    total = 1.0
    mixed = value
    ring = (batch * heads + head).to(tl.int64) * past * size
    for start in range(0, past, KEYS):
        slot = start + tl.arange(0, KEYS)
        age = newest - slot
        age = tl.where(age < 0, age + past, age) + 1
        seen = (age <= pos) & (slot < past)
        at = ring + slot[:, None] * size + column[None, :]
        # All reads are issued before any is waited for, though some keys may be too old.
        mask = (slot < past)[:, None] & real[None, :]
        old_keys = tl.load(keys + at, mask=mask, other=0.0)
        old_values = tl.load(values + at, mask=mask, other=0.0)
        scores = tl.where(seen, tl.sum(old_keys * query[None, :], 1), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        weights = tl.exp2(scores - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        mixed = mixed * shrink + tl.sum(weights[:, None] * tl.where(seen[:, None], old_values, 0.0), 0)
        top = higher
    tl.store(out + batch * width + head * size + column, mixed / total, mask=real)
    if past > 0:
        # The slot held the oldest key, which every thread must have read by now.
        tl.debug_barrier()
        at = ring + oldest * size + column
        tl.store(keys + at, key, mask=real)
        tl.store(values + at, value, mask=real)


@triton.jit
def conv_step_kernel(
    x, weight, bias, conv_state, doc_start, out, width, x_stride, TAPS: tl.constexpr, CHANNELS: tl.constexpr
):
    """The next output of the activated convolution; `conv_state` advances."""
    batch = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    real = d < width
    starts = tl.load(doc_start + batch) != 0
    newest = tl.load(x + batch * x_stride + d, mask=real, other=0.0)
    total = tl.load(bias + d, mask=real, other=0.0)
    rows = ()
    for k in tl.static_range(TAPS - 1):
        row = tl.load(conv_state + (batch * (TAPS - 1) + k) * width + d, mask=real, other=0.0)
        rows = rows + (tl.where(starts, 0.0, row),)
    rows = rows + (newest,)
    for k in tl.static_range(TAPS):
        total += tl.load(weight + d * TAPS + k, mask=real, other=0.0) * rows[k]
    for k in tl.static_range(TAPS - 1):
        tl.store(conv_state + (batch * (TAPS - 1) + k) * width + d, rows[k + 1], mask=real)
    tl.store(out + batch * width + d, total * sigmoid(total), mask=real)


@triton.jit
def _normed(row, norm, index, size):
    value = tl.load(row + index, mask=index < size, other=0.0)
    value *= tl.rsqrt(tl.sum(value * value, 0) / size + 1e-6)
    return value * tl.load(norm + index, mask=index < size, other=0.0)


@triton.jit
def selective_scan_step_kernel(
    x, projected, gate, dt_norm, B_norm, C_norm, dt_weight, dt_bias, A_log, D, ssm_state, doc_start, out,
    width, rank, states, gate_stride,
    CHANNELS: tl.constexpr, RANK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One step of the selective scan, including step sizes, norms and gate; `ssm_state` advances."""
    batch = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    r, n = tl.arange(0, RANK), tl.arange(0, STATES)
    real = d < width
    starts = tl.load(doc_start + batch) != 0
    row = projected + batch * (rank + 2 * states)
    dt = _normed(row, dt_norm, r, rank)
    B = _normed(row + rank, B_norm, n, states)
    C = _normed(row + rank + states, C_norm, n, states)
    mask = real[:, None] & (r[None, :] < rank)
    weight = tl.load(dt_weight + d[:, None] * rank + r[None, :], mask=mask, other=0.0)
    raw = tl.sum(weight * dt[None, :], 1) + tl.load(dt_bias + d, mask=real, other=0.0)
    delta = softplus(raw)
    value = tl.load(x + batch * width + d, mask=real, other=0.0)
    mask = real[:, None] & (n[None, :] < states)
    tile = d[:, None] * states + n[None, :]
    rate = -tl.exp(tl.load(A_log + tile, mask=mask, other=0.0))
    state = ssm_state + batch * width * states + tile
    h = tl.load(state, mask=mask, other=0.0)
    h = tl.where(starts, 0.0, tl.exp(delta[:, None] * rate) * h) + (delta * value)[:, None] * B[None, :]
    tl.store(state, h, mask=mask)
    y = tl.sum(h * C[None, :], 1) + tl.load(D + d, mask=real, other=0.0) * value
    gated = tl.load(gate + batch * gate_stride + d, mask=real, other=0.0)
    tl.store(out + batch * width + d, y * gated * sigmoid(gated), mask=real)


@triton.jit
def ssd_step_kernel(
    x, projected, dt_bias, A_log, D, ssm_state, doc_start, out, width, heads, states, x_stride,
    projected_stride,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One step of Mamba-2's scan, including step sizes and gate; `ssm_state` advances.

    `projected` holds the gate (width,), the inputs of the convolution, and the heads' step sizes.
    """
    batch = tl.program_id(1)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    real = d < width
    starts = tl.load(doc_start + batch) != 0
    head = d // (width // heads)
    row = projected + batch * projected_stride
    raw = tl.load(row + projected_stride - heads + head, mask=real, other=0.0)
    delta = softplus(raw + tl.load(dt_bias + head, mask=real, other=0.0))
    decay = tl.exp(-delta * tl.exp(tl.load(A_log + head, mask=real, other=0.0)))
    mixed = x + batch * x_stride
    value = tl.load(mixed + d, mask=real, other=0.0)
    B = tl.load(mixed + width + n, mask=n < states, other=0.0)
    C = tl.load(mixed + width + states + n, mask=n < states, other=0.0)
    mask = real[:, None] & (n[None, :] < states)
    state = ssm_state + batch * width * states + d[:, None] * states + n[None, :]
    h = tl.load(state, mask=mask, other=0.0)
    h = tl.where(starts, 0.0, decay[:, None] * h) + (delta * value)[:, None] * B[None, :]
    tl.store(state, h, mask=mask)
    y = tl.sum(h * C[None, :], 1) + tl.load(D + head, mask=real, other=0.0) * value
    gated = tl.load(row + d, mask=real, other=0.0)
    tl.store(out + batch * width + d, y * gated * sigmoid(gated), mask=real)
