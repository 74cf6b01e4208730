"""Attention over the last tokens of the same document, and what tells each token where it stands in it.

Every reset in the model follows from one number a token: how many tokens of its own document came before
it. `Places` computes it once a forward pass, and from it, when first asked, rotary angles and masks that all
layers share.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.ops.dispatch import takes_triton

ROPE_BASE = 10_000.0
WIDEST_HEAD = 256
"""Channels of a head that the Triton kernels have room for."""


class Places:
    """Where each token of a chunk stands in its document.

    Attributes:
        position: tokens of the same document before each token, (B, T) int64.
        reset: where a document starts inside the chunk, (B, T) bool, or None for nowhere.
        window: how many tokens attention sees, itself included.
        fresh: true if nothing came before the chunk.
    """

    def __init__(self, tokens: Tensor, before: Tensor | None, reset: Tensor | None, window: int) -> None:
        """`tokens` is (B, T); `before` the document's tokens before the chunk, (B,), None for a new one."""
        batch, length = tokens.shape
        self.reset = reset
        self.window = window
        self.fresh = before is None
        if before is None:
            before = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        time = torch.arange(length, device=tokens.device).expand(batch, length)
        start = -before.unsqueeze(1)
        if reset is not None:
            start = torch.where(reset, time, start).cummax(1).values
        self.position = time - start
        self._rotations: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, torch.dtype], list[tuple[slice, slice, Tensor | None]]] = {}

    @property
    def after(self) -> Tensor:
        """Tokens of the current document up to the chunk's end, (B,)."""
        return self.position[:, -1] + 1

    @property
    def reach(self) -> Tensor:
        """How many earlier tokens each token sees, (B, T) int64."""
        return self.position.clamp(max=self.window - 1)

    def rotate(self, x: Tensor) -> Tensor:
        """Turn pairs of channels of x (B, T, H, E) by their place in the document (RoPE, arXiv 2104.09864).

        The angle of a far position has no digits to lose in float64, so a cached key turned long ago and
        a query turned now differ by their distance alone.
        """
        cos, sin = self.rotations(x, x.shape[3] // 2)
        first, second = x.chunk(2, 3)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), 3).to(x.dtype)

    def rotations(self, like: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `half` angles a token, (B, T, 1, half), where `like` is."""
        if half not in self._rotations and takes_triton(like):
            from core.ops.triton.window_attention import rotations

            self._rotations[half] = rotations(self.position, half, ROPE_BASE)
        if half not in self._rotations:
            precise = torch.float32 if like.device.type == "mps" else torch.float64
            rates = ROPE_BASE ** (-torch.arange(half, device=like.device, dtype=precise) / half)
            angles = self.position[:, :, None, None] * rates
            wide = torch.promote_types(like.dtype, torch.float32)
            self._rotations[half] = angles.cos().to(wide), angles.sin().to(wide)
        return self._rotations[half]

    def masks(self, keys: int, dtype: torch.dtype) -> list[tuple[slice, slice, Tensor | None]]:
        """Blocks of queries, the keys each can reach, and the mask to add to their scores.

        `keys` counts the cached ones in front too. A block is at most one window long, so the work grows
        with the text's length, not with its square. The mask is (B, 1, queries, keys); None means causal.
        """
        if (keys, dtype) not in self._masks:
            self._masks[keys, dtype] = list(self._blocks(keys, dtype))
        return self._masks[keys, dtype]

    def _blocks(self, keys: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor | None]]:
        length = self.position.shape[1]
        past = keys - length
        reach = self.reach.unsqueeze(2)
        if self.fresh and past == 0 and self.reset is None and length <= self.window:
            yield slice(0, length), slice(0, length), None
            return
        for start in range(0, length, self.window):
            stop = min(start + self.window, length)
            first = max(0, past + start - self.window + 1)
            queries = torch.arange(past + start, past + stop, device=reach.device)
            distance = queries.unsqueeze(1) - torch.arange(first, past + stop, device=reach.device)
            hidden = (distance < 0) | (distance > reach[:, start:stop])
            mask = torch.zeros(hidden.shape, dtype=dtype, device=reach.device)
            mask = mask.masked_fill(hidden, -torch.inf).unsqueeze(1)
            yield slice(start, stop), slice(first, past + stop), mask


def takes_kernels(x: Tensor, size: int) -> bool:
    """Whether the Triton kernels can work on x with heads of `size` channels."""
    return takes_triton(x) and x.element_size() == 2 and size <= WIDEST_HEAD


def window_attention(q: Tensor, k: Tensor, v: Tensor, places: Places, *, cache_learns: bool = True) -> Tensor:
    """softmax(q k / sqrt(E)) v, each query over itself and the `places.reach` keys before it.

    Args:
        q: queries, (B, H, T, E).
        k: keys, (B, H, S, E); the last T belong to the queries, those in front come from the cache.
        v: values, (B, H, S, E).
        places: where the queries stand.
        cache_learns: false if nobody wants the gradient of keys and values from the cache.

    Returns:
        (B, H, T, E).
    """
    if takes_kernels(q, q.shape[3]):
        from core.ops.triton.window_attention import window_attention_triton

        return window_attention_triton(q, k, v, places.reach, places.window, cache_learns=cache_learns)
    blocks = [
        F.scaled_dot_product_attention(
            q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=mask, is_causal=mask is None
        )
        for queries, keys, mask in places.masks(k.shape[2], q.dtype)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
