"""All of an attention layer between its two outer projections, on CUDA, as one operation.

    qkv (B, T, 3 H E) --> prepare: split, rotate --> q, k, v (B, H, T, E) --> window_attention --> (B, T, H E)
                                                         cache, read where it is --^

Elsewhere `core.ops.attention_mixer` does the same with single operations. One kernel prepares queries, keys
and values. In the backward, the attention kernels rotate the gradients back and write them directly into
qkv's.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define, hidden
from core.ops.triton.rotary import rotate, rotation
from core.ops.triton.window_attention import Seen, _backward, _forward

ROWS = 64
"""Steps per program."""


@triton.jit
def _move(source, target, mask, half, row_cos, row_sin):
    """Copy the first and second halves of channels, rotated."""
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    first, second = rotate(first, second, row_cos, row_sin)
    tl.store(target, first.to(target.dtype.element_ty), mask=mask)
    tl.store(target + half, second.to(target.dtype.element_ty), mask=mask)


@triton.jit
def attention_prepare_kernel(
    qkv, cos, sin, queries, keys, values, length, heads, half,
    ROWS: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Some steps of a head from (B, T, 3 H E) to queries, keys and values, (B, H, T, E) each."""
    head, batch = (tl.program_id(1) % heads).to(tl.int64), (tl.program_id(1) // heads).to(tl.int64)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    size = 2 * half
    mask = (t < length)[:, None] & (column[None, :] < half)
    row_cos, row_sin = rotation(cos, sin, batch * length + t, half, column, mask, ROPE)
    source = qkv + (batch * length + t)[:, None] * (3 * heads * size) + head * size + column[None, :]
    into = ((batch * heads + head) * length + t)[:, None] * size + column[None, :]
    _move(source, queries + into, mask, half, row_cos, row_sin)
    _move(source + heads * size, keys + into, mask, half, row_cos, row_sin)
    _move(source + 2 * heads * size, values + into, mask, half, 1.0, 0.0)


def _run_attention_mixer(qkv, old_keys, old_values, cos, sin, visible_length, heads, window):
    batch, length, width = qkv.shape
    half = width // (6 * heads)
    queries, keys, values = (qkv.new_empty(batch, heads, length, 2 * half) for _ in range(3))
    # Without angles, any pointer will do: it isn't read.
    angles = (qkv, qkv) if cos is None else (cos.contiguous(), sin.contiguous())
    attention_prepare_kernel[(triton.cdiv(length, ROWS), batch * heads)](
        qkv.contiguous(), *angles, queries, keys, values, length, heads, half,
        ROWS=ROWS, HALF=triton.next_power_of_2(half), ROPE=cos is not None, num_warps=4,
    )  # fmt: skip
    out, logsumexp = _forward(queries, Seen(keys, values, old_keys, old_values), visible_length, window)
    return out.transpose(1, 2).flatten(2), keys, values, hidden(queries), logsumexp


def _fake_attention_mixer(qkv, old_keys, old_values, cos, sin, visible_length, heads, window):
    batch, length, width = qkv.shape
    keys = qkv.new_empty(batch, heads, length, width // (3 * heads))
    return (
        qkv.new_empty(batch, length, width // 3),
        keys,
        torch.empty_like(keys),
        hidden(torch.empty_like(keys)),
        qkv.new_empty(batch, heads, length, dtype=torch.float32),
    )


def _run_attention_mixer_backward(
    queries, keys, values, old_keys, old_values, cos, sin, visible_length, logsumexp, out, grad, heads, window
):
    queries = queries.view(keys.dtype)
    batch, _, length, size = queries.shape
    by_head = (batch, length, heads, size)
    grad_qkv = queries.new_empty(batch, length, 3 * heads * size)
    grads = grad_qkv.view(batch, length, 3, heads, size).transpose(1, 3).unbind(2)
    _backward(
        queries, Seen(keys, values, old_keys, old_values), visible_length,
        out.view(by_head).transpose(1, 2), logsumexp, grad.reshape(by_head).transpose(1, 2), window, grads,
        None if cos is None else (cos, sin),
    )  # fmt: skip
    return grad_qkv


def _fake_attention_mixer_backward(
    queries, keys, values, old_keys, old_values, cos, sin, visible_length, logsumexp, out, grad, heads, window
):
    batch, _, length, size = queries.shape
    return keys.new_empty(batch, length, 3 * heads * size)


_backward_operator = define(
    "attention_mixer_backward",
    "(Tensor queries, Tensor keys, Tensor values, Tensor? old_keys, Tensor? old_values, Tensor? cos, "
    "Tensor? sin, Tensor visible_length, Tensor logsumexp, Tensor out, Tensor grad, int heads, int window) "
    "-> Tensor",
    _run_attention_mixer_backward,
    _fake_attention_mixer_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, old_keys, old_values, cos, sin, visible_length, ctx.heads, ctx.window = inputs
    out, keys, values, queries, logsumexp = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        queries, keys, values, old_keys, old_values, cos, sin, visible_length, logsumexp, out
    )


def _gradients(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    if any(other is not None for other in others):
        raise NotImplementedError("this operation's cache takes no gradient")
    if grad is None:
        return None, *[None] * 7
    return _backward_operator(*ctx.saved_tensors, grad, ctx.heads, ctx.window), *[None] * 7


_operator = define(
    "attention_mixer",
    "(Tensor qkv, Tensor? old_keys, Tensor? old_values, Tensor? cos, Tensor? sin, Tensor visible_length, "
    "int heads, int window) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_attention_mixer,
    _fake_attention_mixer,
    keep=_keep,
    gradients=_gradients,
)


def attention_mixer_triton(
    qkv: Tensor,
    cache: tuple[Tensor, Tensor] | None,
    rotations: tuple[Tensor, Tensor] | None,
    visible_length: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a cache and the tokens of qkv.

    Args:
        qkv: queries, keys and values side by side, (B, T, 3 H E), in a 16-bit type.
        cache: rotated keys, and values, of earlier tokens, (B, H, P, E) each, without gradients.
        rotations: cosines and sines of each token's position, (B, T, 1, E / 2), or None for no rotation.
        visible_length: how many keys before its own each query sees, (B, T) int64, less than `window`.
        heads: H.
        window: an upper bound of visible_length + 1.

    Returns:
        (B, T, H E), and the keys and values of these tokens, (B, H, T, E), which take no gradients.
    """
    keys, values = (None, None) if cache is None else (item.to(qkv.dtype) for item in cache)
    cos, sin = (None, None) if rotations is None else rotations
    mixed, keys, values, *_ = _operator(qkv, keys, values, cos, sin, visible_length, heads, window)
    return mixed, keys.detach(), values.detach()
