"""Attention over a window of the same document on CUDA, in Triton: what `window_attention` computes.

The mask is never made: a query sees as many keys before it as its `reach` says, and blocks of keys that no
query of a block reaches are not read. Softmax is online (arXiv 2205.14135); the backward recomputes the
probabilities from each row's log-sum, once along queries for dq and once along keys for dk and dv, so that
every sum has a fixed order.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.operators import define

LOG2_E = 1.4426950408889634


@triton.jit
def _tile(pointer, rows, columns, row_stride, row_count, column_count):
    """Rows and columns of a matrix, zeros outside. The pointer stands at row 0."""
    mask = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _place(blocks, heads):
    """Which block, batch and head a program works on; the last two 64 bits wide."""
    program = tl.program_id(0)
    both = program // blocks
    return program % blocks, (both // heads).to(tl.int64), (both % heads).to(tl.int64)


@triton.jit
def attention_forward_kernel(
    q, k, v, reach, out, norms, length, keys, heads, width, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head over all keys that any of them sees."""
    block, batch, head = _place(tl.cdiv(length, QUERIES), heads)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    past = keys - length
    place = rows + past
    seen = tl.load(reach + batch * length + rows, mask=rows < length, other=0).to(tl.int32)
    tile_q = _tile(q + batch * q_batch + head * q_head, rows, columns, q_row, length, width)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, E), tl.float32)
    first = tl.maximum(tl.min(place - seen), 0) // KEYS * KEYS
    stop = tl.minimum((block + 1) * QUERIES + past, keys)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        tile_k = _tile(k + batch * k_batch + head * k_head, at, columns, k_row, keys, width)
        distance = place[:, None] - at[None, :]
        scores = tl.dot(tile_q, tl.trans(tile_k)) * scale
        scores = tl.where((distance >= 0) & (distance <= seen[:, None]), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet has no top; -inf - -inf would be no number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        tile_v = _tile(v + batch * v_batch + head * v_head, at, columns, v_row, keys, width)
        mixed = tl.dot(weights.to(tile_v.dtype), tile_v, mixed * shrink[:, None])
        top = higher
    mask = (rows[:, None] < length) & (columns[None, :] < width)
    target = out + batch * o_batch + head * o_head + rows[:, None] * o_row + columns[None, :]
    tl.store(target, (mixed / total[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(norms + (batch * heads + head) * length + rows, top + tl.log2(total), mask=rows < length)


@triton.jit
def attention_queries_kernel(
    q, k, v, reach, out, grad_out, norms, slopes, grad_q, length, keys, heads, width, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries, and each query's sum of grad_out times out for the other kernel."""
    block, batch, head = _place(tl.cdiv(length, QUERIES), heads)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    past = keys - length
    place = rows + past
    seen = tl.load(reach + batch * length + rows, mask=rows < length, other=0).to(tl.int32)
    tile_q = _tile(q + batch * q_batch + head * q_head, rows, columns, q_row, length, width)
    tile_o = _tile(out + batch * o_batch + head * o_head, rows, columns, o_row, length, width)
    tile_g = _tile(grad_out + batch * g_batch + head * g_head, rows, columns, g_row, length, width)
    line = (batch * heads + head) * length + rows
    norm = tl.load(norms + line, mask=rows < length, other=0.0)
    slope = tl.sum(tile_o.to(tl.float32) * tile_g.to(tl.float32), 1)
    tl.store(slopes + line, slope, mask=rows < length)
    grad = tl.zeros((QUERIES, E), tl.float32)
    first = tl.maximum(tl.min(place - seen), 0) // KEYS * KEYS
    stop = tl.minimum((block + 1) * QUERIES + past, keys)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        tile_k = _tile(k + batch * k_batch + head * k_head, at, columns, k_row, keys, width)
        tile_v = _tile(v + batch * v_batch + head * v_head, at, columns, v_row, keys, width)
        distance = place[:, None] - at[None, :]
        visible = (distance >= 0) & (distance <= seen[:, None])
        scores = tl.dot(tile_q, tl.trans(tile_k)) * scale
        weights = tl.where(visible, tl.exp2(scores - norm[:, None]), 0.0)
        change = weights * (tl.dot(tile_g, tl.trans(tile_v)) - slope[:, None])
        grad = tl.dot(change.to(tile_k.dtype), tile_k, grad)
    mask = (rows[:, None] < length) & (columns[None, :] < width)
    target = grad_q + batch * d_batch + head * d_head + rows[:, None] * d_row + columns[None, :]
    grad *= scale * 0.6931471805599453
    tl.store(target, grad.to(grad_q.dtype.element_ty), mask=mask)


@triton.jit
def attention_keys_kernel(
    q, k, v, reach, grad_out, norms, slopes, grad_k, grad_v,
    length, keys, heads, width, window, scale, origin,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    g_batch, g_head, g_row, d_batch, d_head, d_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys, from `origin` on, over all queries that may see any of them."""
    block, batch, head = _place(tl.cdiv(keys - origin, KEYS), heads)
    begin = origin + block * KEYS
    at = begin + tl.arange(0, KEYS)
    columns = tl.arange(0, E)
    past = keys - length
    tile_k = _tile(k + batch * k_batch + head * k_head, at, columns, k_row, keys, width)
    tile_v = _tile(v + batch * v_batch + head * v_head, at, columns, v_row, keys, width)
    sum_k = tl.zeros((KEYS, E), tl.float32)
    sum_v = tl.zeros((KEYS, E), tl.float32)
    first = tl.maximum(begin - past, 0) // QUERIES * QUERIES
    stop = tl.minimum(begin + KEYS - 1 + window - past, length)
    for start in range(first, stop, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        seen = tl.load(reach + batch * length + rows, mask=rows < length, other=-1).to(tl.int32)
        tile_q = _tile(q + batch * q_batch + head * q_head, rows, columns, q_row, length, width)
        tile_g = _tile(grad_out + batch * g_batch + head * g_head, rows, columns, g_row, length, width)
        line = (batch * heads + head) * length + rows
        norm = tl.load(norms + line, mask=rows < length, other=0.0)
        slope = tl.load(slopes + line, mask=rows < length, other=0.0)
        distance = (rows + past)[None, :] - at[:, None]
        visible = (distance >= 0) & (distance <= seen[None, :])
        scores = tl.dot(tile_k, tl.trans(tile_q)) * scale
        weights = tl.where(visible, tl.exp2(scores - norm[None, :]), 0.0)
        sum_v = tl.dot(weights.to(tile_g.dtype), tile_g, sum_v)
        change = weights * (tl.dot(tile_v, tl.trans(tile_g)) - slope[None, :])
        sum_k = tl.dot(change.to(tile_q.dtype), tile_q, sum_k)
    mask = (at[:, None] < keys) & (columns[None, :] < width)
    into = batch * d_batch + head * d_head + at[:, None] * d_row + columns[None, :]
    sum_k *= scale * 0.6931471805599453
    tl.store(grad_k + into, sum_k.to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + into, sum_v.to(grad_v.dtype.element_ty), mask=mask)


def _blocks(width: int) -> dict[str, int]:
    """Block sizes for heads of `width` channels that fit the shared memory of small GPUs too (99 KiB)."""
    padded = max(16, triton.next_power_of_2(width))
    queries, keys, stages = (64, 64, 3) if padded <= 64 else (64, 32, 2) if padded <= 128 else (32, 32, 1)
    return {"E": padded, "QUERIES": queries, "KEYS": keys, "num_stages": stages, "num_warps": 4}


def _scale(width: int) -> float:
    """Of the scores, in powers of two."""
    return width**-0.5 * LOG2_E


def _forward(q: Tensor, k: Tensor, v: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    q, k, v = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (q, k, v))
    out = torch.empty(batch, length, heads, width, dtype=q.dtype, device=q.device).transpose(1, 2)
    norms = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    options = _blocks(width)
    attention_forward_kernel[(triton.cdiv(length, options["QUERIES"]) * batch * heads,)](
        q, k, v, reach.contiguous(), out, norms, length, k.shape[2], heads, width, _scale(width),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        **options,
    )  # fmt: skip
    return out, norms


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reach: Tensor,
    out: Tensor,
    norms: Tensor,
    grad_out: Tensor,
    window: int,
    cached: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, width = q.shape
    q, k, v, grad_out = (
        tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (q, k, v, grad_out)
    )
    reach = reach.contiguous()
    keys = k.shape[2]
    grad_q = torch.empty(batch, length, heads, width, dtype=q.dtype, device=q.device).transpose(1, 2)
    grad_k = torch.empty(batch, heads, keys, width, dtype=k.dtype, device=k.device)
    grad_v = torch.empty_like(grad_k)
    slopes = torch.empty_like(norms)
    options = _blocks(width)
    attention_queries_kernel[(triton.cdiv(length, options["QUERIES"]) * batch * heads,)](
        q, k, v, reach, out, grad_out, norms, slopes, grad_q, length, keys, heads, width, _scale(width),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *grad_out.stride()[:3],
        *grad_q.stride()[:3], **options,
    )  # fmt: skip
    attention_keys_kernel[(triton.cdiv(keys - cached, options["KEYS"]) * batch * heads,)](
        q, k, v, reach, grad_out, norms, slopes, grad_k, grad_v, length, keys, heads, width, window,
        _scale(width), cached,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad_out.stride()[:3], *grad_k.stride()[:3],
        **options,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _run_window_attention(q, k, v, reach, window, cached):
    return _forward(q, k, v, reach)


def _fake_window_attention(q, k, v, reach, window, cached):
    batch, heads, length, width = q.shape
    out = q.new_empty(batch, length, heads, width).transpose(1, 2)
    return out, q.new_empty(batch, heads, length, dtype=torch.float32)


def _run_window_attention_backward(q, k, v, reach, out, norms, grad_out, window, cached):
    return _backward(q, k, v, reach, out, norms, grad_out, window, cached)


def _fake_window_attention_backward(q, k, v, reach, out, norms, grad_out, window, cached):
    batch, heads, length, width = q.shape
    grad_k = k.new_empty(batch, heads, k.shape[2], width)
    return q.new_empty(batch, length, heads, width).transpose(1, 2), grad_k, torch.empty_like(grad_k)


_backward_operator = define(
    "window_attention_backward",
    "(Tensor q, Tensor k, Tensor v, Tensor reach, Tensor out, Tensor norms, Tensor grad_out, "
    "int window, int cached) -> (Tensor, Tensor, Tensor)",
    _run_window_attention_backward,
    _fake_window_attention_backward,
)


def _keep(ctx, inputs, output):
    q, k, v, reach, ctx.window, ctx.cached = inputs
    ctx.save_for_backward(q, k, v, reach, *output)


def _gradients(ctx, grad_out, grad_norms):
    found = _backward_operator(*ctx.saved_tensors, grad_out, ctx.window, ctx.cached)
    return *found, None, None, None


_operator = define(
    "window_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor reach, int window, int cached) -> (Tensor, Tensor)",
    _run_window_attention,
    _fake_window_attention,
    keep=_keep,
    gradients=_gradients,
)


def _run_rotations(position, half, base):
    rates = base ** (-torch.arange(half, device=position.device, dtype=torch.float64) / half)
    angles = position[:, :, None, None] * rates
    return angles.cos().float(), angles.sin().float()


def _fake_rotations(position, half, base):
    shape = (*position.shape, 1, half)
    return position.new_empty(shape, dtype=torch.float32), position.new_empty(shape, dtype=torch.float32)


_rotations = define(
    "rotations",
    "(Tensor position, int half, float base) -> (Tensor, Tensor)",
    _run_rotations,
    _fake_rotations,
)


def rotations(position: Tensor, half: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (B, T), each (B, T, 1, half) float32.

    An operator of its own, or a compiler would compute them again, in float64, wherever they are used.
    """
    cos, sin = _rotations(position, half, base)
    return cos, sin


def window_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, reach: Tensor, window: int, *, cached: int = 0
) -> Tensor:
    """softmax(q k / sqrt(E)) v, each query over itself and the `reach` keys before it.

    Args:
        q: queries, (B, H, T, E).
        k: keys, (B, H, S, E), the last T those of the queries.
        v: values, (B, H, S, E).
        reach: keys that each query sees before its own, (B, T) int64, below `window`.
        window: an upper bound of reach + 1.
        cached: nobody looks at the gradient of the first so many keys and values; it is not written.

    Returns:
        (B, H, T, E), laid out as (B, T, H, E).
    """
    out: Tensor = _operator(q, k, v, reach, window, cached)[0]
    return out
