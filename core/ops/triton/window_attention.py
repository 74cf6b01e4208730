"""Attention over a window of the same document on CUDA, in Triton: what `window_attention` computes.

                  keys: cache | chunk
    queries  0    . x x x x | x                    x  seen: itself and visible_length keys before it
             1    . . x x x | x x                  .  not seen
             2    . . . . . | . . x   <- a document starts here
             3    . . . . . | . . x x
             a program takes a block of rows and walks through the blocks of keys that any of them sees

There is no mask in memory: `visible_length` says how many keys before its own each query sees. Blocks of keys
that no query of a block sees are not read, and only blocks at the edges compare positions. Softmax is online
(arXiv 2205.14135). The backward recomputes the probabilities from each row's logsumexp, once along queries
for dq and once along keys for dk and dv, so that every sum has a fixed order. For a short text both are one
launch.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from core.ops.operators import define
from core.ops.triton import window_attention_kernels as kernels

LOG2_E = 1.4426950408889634
SHORT = 128
"""The longest text whose backward is one launch."""
SMALL_WINDOW = 256
"""Up to this window, looking up which keys are hidden in other documents takes longer than reading them."""


class Blocks(NamedTuple):
    """The blocks of a kernel; they fit in the shared memory of small GPUs too (99 KiB)."""

    queries: int
    keys: int
    stages: int
    warps: int

    def options(self, width: int) -> dict[str, int | bool]:
        """Options of the kernels for heads of `width` channels."""
        padded = _padded(width)
        return {
            "E": padded,
            "EVEN": padded == width,
            "QUERIES": self.queries,
            "KEYS": self.keys,
            "num_stages": self.stages,
            "num_warps": self.warps,
        }


def _padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _forward_blocks(width: int) -> Blocks:
    if _padded(width) > 64:
        return Blocks(64, 32, 2, 4) if _padded(width) <= 128 else Blocks(32, 32, 1, 4)
    return Blocks(64, 64, 3, 4)


def _backward_blocks(width: int, length: int) -> tuple[Blocks, Blocks]:
    """Blocks for dq, and for dk and dv.

    For short texts both are one launch, so warps and stages are the same.
    """
    if _padded(width) > 64:
        blocks = Blocks(64, 32, 2, 4) if _padded(width) <= 128 else Blocks(32, 32, 1, 4)
        return blocks, blocks
    if length <= SHORT:
        return Blocks(64, 64, 3, 4), Blocks(32, 64, 3, 4)
    return Blocks(64, 64, 3, 4), Blocks(64, 64, 3, 4)


def _scale(width: int) -> float:
    """The factor of the scores, for powers of two."""
    return width**-0.5 * LOG2_E


def _rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors with contiguous channels."""
    return [tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in tensors]


def _alike(*tensors: Tensor) -> list[Tensor]:
    """The tensors with contiguous channels and the same strides."""
    same = all(tensor.stride() == tensors[0].stride() for tensor in tensors)
    return _rows(*tensors) if same else [tensor.contiguous() for tensor in tensors]


def _strides(*tensors: Tensor) -> list[tuple[int, ...]]:
    """Strides over batch, heads and rows of each tensor."""
    return [tensor.stride()[:3] for tensor in tensors]


class Seen(NamedTuple):
    """Keys and values (B, H, T, E) of the chunk, and (B, H, P, E) of the cache, if there is one."""

    k: Tensor
    v: Tensor
    old_k: Tensor | None = None
    old_v: Tensor | None = None

    @property
    def past(self) -> int:
        """P."""
        return 0 if self.old_k is None else self.old_k.shape[2]

    def aligned(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, laid out as the kernels expect.

        Without a cache, the chunk's stand in for it and aren't read.
        """
        k, v = _alike(self.k, self.v)
        if self.old_k is None or self.old_v is None:
            return k, v, k, v
        old_k, old_v = _alike(self.old_k, self.old_v)
        if old_k.stride(2) != k.stride(2):
            k, v, old_k, old_v = (item.contiguous() for item in (k, v, old_k, old_v))
        return k, v, old_k, old_v


def _forward(q: Tensor, seen: Seen, visible_length: Tensor, window: int) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = q.shape
    (q,) = _rows(q)
    k, v, old_k, old_v = seen.aligned()
    out = torch.empty(batch, length, heads, width, dtype=q.dtype, device=q.device).transpose(1, 2)
    logsumexp = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    blocks = _forward_blocks(width)
    kernels.attention_forward_kernel[triton.cdiv(length, blocks.queries), heads, batch](
        q, k, v, old_k, old_v, visible_length.contiguous(), out, logsumexp,
        length, seen.past, heads, width, window, _scale(width),
        *_strides(q, k), old_k.stride()[:2], *_strides(out),
        SKIPS=window > SMALL_WINDOW, **blocks.options(width),
    )  # fmt: skip
    return out, logsumexp


def _backward(
    q: Tensor,
    seen: Seen,
    visible_length: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    grad_out: Tensor,
    window: int,
    grads: tuple[Tensor, Tensor, Tensor],
    rotations: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write the gradients of q, keys and values into `grads`; the cache's too, if `grads` have room for them.

    If q and k were rotated by `rotations`, cosines and sines (B, T, 1, E / 2), the gradients are those before
    the rotation, and `grads` must have no room for the cache's.
    """
    batch, heads, length, width = q.shape
    q, grad_out = _rows(q, grad_out)
    k, v, old_k, old_v = seen.aligned()
    grad_q, grad_k, grad_v = grads
    learning = grad_k.shape[2] - length
    visible_length = visible_length.contiguous()
    angles = (q, q) if rotations is None else tuple(item.contiguous() for item in rotations)
    sizes = (length, seen.past, heads, width, window, _scale(width))
    blocks, keys_blocks = _backward_blocks(width, length)
    how = {"ROTATED": rotations is not None}
    skips = {"SKIPS": window > SMALL_WINDOW}
    full = {"FULL": length % keys_blocks.queries == 0}
    programs = (
        triton.cdiv(length, blocks.queries),
        triton.cdiv(learning, keys_blocks.keys) + triton.cdiv(length, keys_blocks.keys),
    )
    if length <= SHORT:
        at_once = {"QUERIES_AT_ONCE": keys_blocks.queries, "KEYS_AT_ONCE": blocks.keys}
        options = how | skips | full | at_once | blocks.options(width) | {"KEYS": keys_blocks.keys}
        kernels.attention_backward_kernel[sum(programs), heads, batch](
            q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, grad_q, grad_k, grad_v, *angles,
            *sizes, learning, *_strides(q, k), old_k.stride()[:2], *_strides(out, grad_out, grad_q, grad_k),
            **options,
        )  # fmt: skip
        return
    delta = torch.empty_like(logsumexp)
    kernels.attention_queries_kernel[programs[0], heads, batch](
        q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, delta, grad_q, *angles, *sizes,
        *_strides(q, k), old_k.stride()[:2], *_strides(out, grad_out, grad_q),
        **how, **skips, **blocks.options(width),
    )  # fmt: skip
    kernels.attention_keys_kernel[programs[1], heads, batch](
        q, k, v, old_k, old_v, visible_length, grad_out, logsumexp, delta, grad_k, grad_v, *angles, *sizes,
        learning, *_strides(q, k), old_k.stride()[:2], *_strides(grad_out, grad_k),
        **how, **full, **keys_blocks.options(width),
    )  # fmt: skip


def _split(q: Tensor, k: Tensor, v: Tensor) -> Seen:
    """Split keys and values into those of the cache and those of the queries, which come last."""
    past = k.shape[2] - q.shape[2]
    if past == 0:
        return Seen(k, v)
    k, v = _alike(k, v)
    return Seen(k[:, :, past:], v[:, :, past:], k[:, :, :past], v[:, :, :past])


def _run_window_attention(q, k, v, visible_length, window, cache_learns):
    return _forward(q, _split(q, k, v), visible_length, window)


def _fake_window_attention(q, k, v, visible_length, window, cache_learns):
    batch, heads, length, width = q.shape
    out = q.new_empty(batch, length, heads, width).transpose(1, 2)
    return out, q.new_empty(batch, heads, length, dtype=torch.float32)


def _run_window_attention_backward(q, k, v, visible_length, out, logsumexp, grad_out, window, cache_learns):
    grads = _fake_window_attention_backward(
        q, k, v, visible_length, out, logsumexp, grad_out, window, cache_learns
    )
    grad_q, *others = grads
    first = 0 if cache_learns else k.shape[2] - q.shape[2]
    written = grad_q, *(grad[:, :, first:] for grad in others)
    _backward(q, _split(q, k, v), visible_length, out, logsumexp, grad_out, window, written)
    return grads


def _fake_window_attention_backward(q, k, v, visible_length, out, logsumexp, grad_out, window, cache_learns):
    batch, heads, length, width = q.shape
    grad_k = k.new_empty(batch, heads, k.shape[2], width)
    return q.new_empty(batch, length, heads, width).transpose(1, 2), grad_k, torch.empty_like(grad_k)


_backward_operator = define(
    "window_attention_backward",
    "(Tensor q, Tensor k, Tensor v, Tensor visible_length, Tensor out, Tensor logsumexp, Tensor grad_out, "
    "int window, bool cache_learns) -> (Tensor, Tensor, Tensor)",
    _run_window_attention_backward,
    _fake_window_attention_backward,
)


def _keep(ctx, inputs, output):
    q, k, v, visible_length, ctx.window, ctx.cache_learns = inputs
    ctx.save_for_backward(q, k, v, visible_length, *output)


def _gradients(ctx, grad_out, grad_logsumexp):
    grads = _backward_operator(*ctx.saved_tensors, grad_out, ctx.window, ctx.cache_learns)
    return *grads, None, None, None


_operator = define(
    "window_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor visible_length, int window, bool cache_learns) "
    "-> (Tensor, Tensor)",
    _run_window_attention,
    _fake_window_attention,
    keep=_keep,
    gradients=_gradients,
)


def window_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, visible_length: Tensor, window: int, *, cache_learns: bool = True
) -> Tensor:
    """softmax(q k / sqrt(E)) v, each query over itself and the `visible_length` keys before it.

    Args:
        q: queries, (B, H, T, E).
        k: keys, (B, H, S, E), the last T those of the queries.
        v: values, (B, H, S, E).
        visible_length: how many keys before its own each query sees, (B, T) int64, less than `window`. What
            a query can't see, no later query sees either.
        window: an upper bound of visible_length + 1.
        cache_learns: if false, the gradient of the S - T keys and values in front isn't needed and isn't
            written.

    Returns:
        (B, H, T, E), laid out as (B, T, H, E).
    """
    out: Tensor = _operator(q, k, v, visible_length, window, cache_learns)[0]
    return out
