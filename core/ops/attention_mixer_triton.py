"""All of an attention layer between its two outer projections, on CUDA, as one operation.

What `MultiHeadAttention` does elsewhere with single operations: split the projection, turn queries and keys
by their places, put the cache in front, attend. One kernel prepares all three, and one takes their gradients
back into the projection's.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define, hidden
from core.ops.window_attention_triton import _backward, _forward

ROWS = 64
"""Slots of a program."""


@triton.jit
def _turned(first, second, cos, sin):
    """A pair of channels turned by an angle."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _angles(cos, sin, rows, length, half, column, mask, ROPE: tl.constexpr):
    """Cosines and sines (ROWS, HALF) at rows of (B T, half); those of no angle without ROPE."""
    turn_cos = tl.full(mask.shape, 1.0, tl.float32)
    turn_sin = tl.zeros(mask.shape, tl.float32)
    if ROPE:
        at = rows[:, None] * half + column[None, :]
        turn_cos = tl.load(cos + at, mask=mask, other=1.0)
        turn_sin = tl.load(sin + at, mask=mask, other=0.0)
    return turn_cos, turn_sin


@triton.jit
def _remembered(pointer, mask, CACHED: tl.constexpr):
    """Values of the cache, zeros where there is none."""
    values = tl.zeros(mask.shape, tl.float32)
    if CACHED:
        values = tl.load(pointer, mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def attention_prepare_kernel(
    qkv, old_keys, old_values, cos, sin, queries, keys, values, length, past, heads, half,
    ROWS: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr, CACHED: tl.constexpr,
):  # fmt: skip
    """Some slots of a head: queries (B, H, T, E), and keys and values (B, H, P + T, E), cached ones first."""
    head, batch = (tl.program_id(1) % heads).to(tl.int64), (tl.program_id(1) // heads).to(tl.int64)
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    inside = column[None, :] < half
    size = 2 * half
    t = slot - past
    fresh = (t >= 0)[:, None] & (t < length)[:, None] & inside
    cached = (slot < past)[:, None] & inside
    turn_cos, turn_sin = _angles(cos, sin, batch * length + t, length, half, column, fresh, ROPE)
    row = qkv + (batch * length + t)[:, None] * (3 * heads * size) + head * size + column[None, :]
    first = tl.load(row, mask=fresh, other=0.0).to(tl.float32)
    second = tl.load(row + half, mask=fresh, other=0.0).to(tl.float32)
    first, second = _turned(first, second, turn_cos, turn_sin)
    into = queries + ((batch * heads + head) * length + t)[:, None] * size + column[None, :]
    tl.store(into, first.to(queries.dtype.element_ty), mask=fresh)
    tl.store(into + half, second.to(queries.dtype.element_ty), mask=fresh)
    row += heads * size
    first = tl.load(row, mask=fresh, other=0.0).to(tl.float32)
    second = tl.load(row + half, mask=fresh, other=0.0).to(tl.float32)
    first, second = _turned(first, second, turn_cos, turn_sin)
    old = ((batch * heads + head) * past + slot)[:, None] * size + column[None, :]
    first += _remembered(old_keys + old, cached, CACHED)
    second += _remembered(old_keys + old + half, cached, CACHED)
    into = ((batch * heads + head) * (past + length) + slot)[:, None] * size + column[None, :]
    tl.store(keys + into, first.to(keys.dtype.element_ty), mask=fresh | cached)
    tl.store(keys + into + half, second.to(keys.dtype.element_ty), mask=fresh | cached)
    row += heads * size
    first = tl.load(row, mask=fresh, other=0.0).to(tl.float32)
    first += _remembered(old_values + old, cached, CACHED)
    second = tl.load(row + half, mask=fresh, other=0.0).to(tl.float32)
    second += _remembered(old_values + old + half, cached, CACHED)
    tl.store(values + into, first.to(values.dtype.element_ty), mask=fresh | cached)
    tl.store(values + into + half, second.to(values.dtype.element_ty), mask=fresh | cached)


@triton.jit
def attention_finish_kernel(
    grad_queries, grad_keys, grad_values, cos, sin, grad_qkv, length, past, heads, half,
    q_batch, q_head, q_row,
    ROWS: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """The projection's gradient (B, T, 3 H E) for some steps of one head; a turn back is a turn by -angle."""
    head, batch = (tl.program_id(1) % heads).to(tl.int64), (tl.program_id(1) // heads).to(tl.int64)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    size = 2 * half
    mask = (t < length)[:, None] & (column[None, :] < half)
    turn_cos, turn_sin = _angles(cos, sin, batch * length + t, length, half, column, mask, ROPE)
    row = grad_qkv + (batch * length + t)[:, None] * (3 * heads * size) + head * size + column[None, :]
    of = grad_queries + batch * q_batch + head * q_head + t[:, None] * q_row + column[None, :]
    first = tl.load(of, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(of + half, mask=mask, other=0.0).to(tl.float32)
    first, second = _turned(first, second, turn_cos, -turn_sin)
    tl.store(row, first.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(row + half, second.to(grad_qkv.dtype.element_ty), mask=mask)
    row += heads * size
    of = ((batch * heads + head) * (past + length) + past + t)[:, None] * size + column[None, :]
    first = tl.load(grad_keys + of, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(grad_keys + of + half, mask=mask, other=0.0).to(tl.float32)
    first, second = _turned(first, second, turn_cos, -turn_sin)
    tl.store(row, first.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(row + half, second.to(grad_qkv.dtype.element_ty), mask=mask)
    row += heads * size
    first = tl.load(grad_values + of, mask=mask, other=0.0)
    second = tl.load(grad_values + of + half, mask=mask, other=0.0)
    tl.store(row, first.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(row + half, second.to(grad_qkv.dtype.element_ty), mask=mask)


def _options(half: int, cos: Tensor | None) -> dict[str, Any]:
    return {"ROWS": ROWS, "HALF": triton.next_power_of_2(half), "ROPE": cos is not None, "num_warps": 4}


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _run_attention_mixer(qkv, old_keys, old_values, cos, sin, reach, heads, window):
    batch, length, width = qkv.shape
    half = width // (6 * heads)
    past = 0 if old_keys is None else old_keys.shape[2]
    queries = qkv.new_empty(batch, heads, length, 2 * half)
    keys = qkv.new_empty(batch, heads, past + length, 2 * half)
    values = torch.empty_like(keys)
    # Without a cache any pointer will do: nothing is read.
    old = (qkv, qkv) if old_keys is None else (old_keys.contiguous(), old_values.contiguous())
    attention_prepare_kernel[(triton.cdiv(past + length, ROWS), batch * heads)](
        qkv.contiguous(), *old, _contiguous(cos), _contiguous(sin),
        queries, keys, values, length, past, heads, half, CACHED=past > 0, **_options(half, cos),
    )  # fmt: skip
    out, norms = _forward(queries, keys, values, reach, window)
    return out.transpose(1, 2).flatten(2), keys, values, hidden(queries), norms


def _fake_attention_mixer(qkv, old_keys, old_values, cos, sin, reach, heads, window):
    batch, length, width = qkv.shape
    size = width // (3 * heads)
    past = 0 if old_keys is None else old_keys.shape[2]
    keys = qkv.new_empty(batch, heads, past + length, size)
    return (
        qkv.new_empty(batch, length, width // 3),
        keys,
        torch.empty_like(keys),
        hidden(qkv.new_empty(batch, heads, length, size)),
        qkv.new_empty(batch, heads, length, dtype=torch.float32),
    )


def _run_attention_mixer_backward(queries, keys, values, cos, sin, reach, norms, out, grad, heads, window):
    queries = queries.view(keys.dtype)
    batch, _, length, size = queries.shape
    past = keys.shape[2] - length
    by_head = (batch, length, heads, size)
    grad_queries, grad_keys, grad_values = _backward(
        queries, keys, values, reach, out.view(by_head).transpose(1, 2), norms,
        grad.reshape(by_head).transpose(1, 2), window, past,
    )  # fmt: skip
    grad_qkv = queries.new_empty(batch, length, 3 * heads * size)
    attention_finish_kernel[(triton.cdiv(length, ROWS), batch * heads)](
        grad_queries, grad_keys, grad_values, _contiguous(cos), _contiguous(sin), grad_qkv,
        length, past, heads, size // 2, *grad_queries.stride()[:3], **_options(size // 2, cos),
    )  # fmt: skip
    return grad_qkv


def _fake_attention_mixer_backward(queries, keys, values, cos, sin, reach, norms, out, grad, heads, window):
    batch, _, length, size = queries.shape
    return keys.new_empty(batch, length, 3 * heads * size)


_backward_operator = define(
    "attention_mixer_backward",
    "(Tensor queries, Tensor keys, Tensor values, Tensor? cos, Tensor? sin, Tensor reach, Tensor norms, "
    "Tensor out, Tensor grad, int heads, int window) -> Tensor",
    _run_attention_mixer_backward,
    _fake_attention_mixer_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, _, cos, sin, reach, ctx.heads, ctx.window = inputs
    out, keys, values, queries, norms = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(queries, keys, values, cos, sin, reach, norms, out)


def _gradients(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    if any(other is not None for other in others):
        raise NotImplementedError("this operation's cache takes no gradient")
    if grad is None:
        return None, *[None] * 7
    return _backward_operator(*ctx.saved_tensors, grad, ctx.heads, ctx.window), *[None] * 7


_operator = define(
    "attention_mixer",
    "(Tensor qkv, Tensor? old_keys, Tensor? old_values, Tensor? cos, Tensor? sin, Tensor reach, int heads, "
    "int window) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_attention_mixer,
    _fake_attention_mixer,
    keep=_keep,
    gradients=_gradients,
)


def attention_mixer_triton(
    qkv: Tensor,
    cache: tuple[Tensor, Tensor] | None,
    rotations: tuple[Tensor, Tensor] | None,
    reach: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of queries, keys and values beside each other, over a cache as well.

    Args:
        qkv: (B, T, 3 H E), in 16 bits.
        cache: keys, turned already, and values of earlier tokens, (B, H, P, E) each, without gradients.
        rotations: cosines and sines of each token's place, (B, T, 1, E / 2), or None for no turning.
        reach: keys that each query sees before its own, (B, T) int64, below `window`.
        heads: H.
        window: an upper bound of reach + 1.

    Returns:
        (B, T, H E), and all keys and values, (B, H, P + T, E); whose gradients are refused.
    """
    keys, values = (None, None) if cache is None else (item.to(qkv.dtype) for item in cache)
    cos, sin = (None, None) if rotations is None else rotations
    mixed, keys, values, *_ = _operator(qkv, keys, values, cos, sin, reach, heads, window)
    return mixed, keys.detach(), values.detach()
