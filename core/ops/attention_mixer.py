"""An attention layer between its two projections: rotary positions, attention, and the next chunk's KV
cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.ops.positions import Positions
from core.ops.window_attention import takes_attention_kernels, window_attention


def attention_mixer(
    qkv: Tensor, cache: tuple[Tensor, Tensor] | None, positions: Positions, heads: int, *, rotary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention over the last W tokens of the document, including those in the cache.

    Args:
        qkv: queries, keys and values side by side, (B, T, 3C), with C = H E.
        cache: rotated keys, and values, of the W - 1 tokens before, (B, H, W - 1, E) each.
        positions: the tokens' positions; W is its window.
        heads: H.
        rotary: whether queries and keys are rotated by their positions.

    Returns:
        (B, T, C), and the keys and values of the new cache, (B, H, W - 1, E) each.
    """
    size = qkv.shape[2] // (3 * heads)
    learns = cache is not None and (cache[0].requires_grad or cache[1].requires_grad)
    if takes_attention_kernels(qkv, size, "attention_mixer") and size % 2 == 0 and not learns:
        from core.ops.triton.attention_mixer import attention_mixer_triton

        rotations = positions.rotations(qkv, size // 2) if rotary else None
        mixed, keys, values = attention_mixer_triton(
            qkv, cache, rotations, positions.visible_length, heads, positions.window
        )
    else:
        mixed, keys, values = _plain(qkv, cache, positions, heads, rotary)
    old_keys, old_values = (None, None) if cache is None else cache
    past = positions.window - 1
    return mixed, _newest(keys, old_keys, past), _newest(values, old_values, past)


def _plain(
    qkv: Tensor, cache: tuple[Tensor, Tensor] | None, positions: Positions, heads: int, rotary: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, C), and the rotated keys and the values (B, H, T, E) of these tokens alone."""
    q, k, v = qkv.unflatten(2, (3 * heads, -1)).chunk(3, 2)  # (B, T, H, E) each
    if rotary:
        q, k = positions.rotate(torch.cat((q, k), 2)).chunk(2, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if cache is None:
        mixed = window_attention(q, k, v, positions)
    else:
        old_k, old_v = cache
        seen_k, seen_v = torch.cat((old_k.to(k.dtype), k), 2), torch.cat((old_v.to(v.dtype), v), 2)
        learns = old_k.requires_grad or old_v.requires_grad
        mixed = window_attention(q, seen_k, seen_v, positions, cache_learns=learns)
    return mixed.transpose(1, 2).flatten(2), k, v


def _newest(new: Tensor, old: Tensor | None, past: int) -> Tensor:
    """The last `past` slots of `old` (B, H, past, E) followed by `new` (B, H, T, E).

    Without `old`, slots that are missing in front are zeros.
    """
    kept = new[:, :, max(0, new.shape[2] - past) :]
    missing = past - kept.shape[2]
    if old is None:
        return F.pad(kept, (0, 0, missing, 0)) if missing else kept
    kept = kept.to(old.dtype)
    return torch.cat((old[:, :, past - missing :], kept), 2) if missing else kept
