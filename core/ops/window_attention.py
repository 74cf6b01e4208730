"""Attention over the last tokens of the same document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.ops.dispatch import takes_triton
from core.ops.positions import Positions

MAX_HEAD_SIZE = 256
"""The most channels per head that the Triton kernels have room for."""


def takes_attention_kernels(x: Tensor, head_size: int, operation: str) -> bool:
    """Whether an operation's Triton kernels can take x with heads of `head_size` channels."""
    return takes_triton(x, operation) and x.element_size() == 2 and head_size <= MAX_HEAD_SIZE


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, *, cache_learns: bool = True
) -> Tensor:
    """softmax(q k / sqrt(E)) v, each query over itself and the `positions.visible_length` keys before it.

    Args:
        q: queries, (B, H, T, E).
        k: keys, (B, H, S, E); the last T belong to the queries, those in front come from the cache.
        v: values, (B, H, S, E).
        positions: the queries' positions.
        cache_learns: whether keys and values from the cache need gradients.

    Returns:
        (B, H, T, E).
    """
    if takes_attention_kernels(q, q.shape[3], "window_attention"):
        from core.ops.triton.window_attention import window_attention_triton

        return window_attention_triton(
            q, k, v, positions.visible_length, positions.window, cache_learns=cache_learns
        )
    blocks = [
        F.scaled_dot_product_attention(
            q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=mask, is_causal=mask is None
        )
        for queries, keys, mask in positions.masks(k.shape[2], q.dtype)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
