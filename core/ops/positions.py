"""Where each token of a chunk is in its document, and what follows from that.

Every reset in the model follows from one number per token: how many tokens of its own document precede it.
`Positions` computes it once per forward pass, and from it, on first use, the rotary angles and masks that all
layers share.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from core.ops.dispatch import takes_triton

ROPE_BASE = 10_000.0


def inverse_frequencies(half: int, device: torch.device | None = None) -> Tensor:
    """Radians per token for each of `half` pairs of channels, (half,); float64 if the device has it."""
    precise = torch.float32 if device is not None and device.type == "mps" else torch.float64
    return ROPE_BASE ** (-torch.arange(half, device=device, dtype=precise) / half)


class Positions:
    """The positions of a chunk's tokens.

    Attributes:
        position: tokens of the same document before each token, (B, T) int64.
        reset: where a document starts inside the chunk, (B, T) bool; None for nowhere.
        window: how many tokens attention sees, including the query's own.
        fresh: true if nothing came before the chunk.
    """

    def __init__(self, tokens: Tensor, before: Tensor | None, reset: Tensor | None, window: int) -> None:
        """`tokens` is (B, T); `before` (B,) counts the document's tokens before them, None if it is new."""
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
        """How many tokens the current document has up to the chunk's end, (B,)."""
        return self.position[:, -1] + 1

    @property
    def visible_length(self) -> Tensor:
        """How many earlier tokens each token sees, (B, T) int64."""
        return self.position.clamp(max=self.window - 1)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate pairs of channels of x (B, T, H, E) by their position (RoPE, arXiv 2104.09864).

        In float64 far positions keep all their digits, so that a key that was rotated long ago and a query
        that is rotated now differ by their distance alone.
        """
        cos, sin = self.rotations(x, x.shape[3] // 2)
        first, second = x.chunk(2, 3)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), 3).to(x.dtype)

    def rotations(self, like: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of `half` angles per token, (B, T, 1, half), on the device of `like`."""
        if half not in self._rotations and takes_triton(like, "rotary"):
            from core.ops.triton.rotary import rotations

            self._rotations[half] = rotations(self.position, half, ROPE_BASE)
        if half not in self._rotations:
            angles = self.position[:, :, None, None] * inverse_frequencies(half, like.device)
            wide = torch.promote_types(like.dtype, torch.float32)
            self._rotations[half] = angles.cos().to(wide), angles.sin().to(wide)
        return self._rotations[half]

    def masks(self, keys: int, dtype: torch.dtype) -> list[tuple[slice, slice, Tensor | None]]:
        """Blocks of queries, the keys visible to each block, and the mask to add to their scores.

        `keys` includes the cached ones in front. A block is at most one window long, so the work grows
        linearly with the text's length. The mask is (B, 1, queries, keys); None means causal.
        """
        if (keys, dtype) not in self._masks:
            self._masks[keys, dtype] = list(self._blocks(keys, dtype))
        return self._masks[keys, dtype]

    def _blocks(self, keys: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor | None]]:
        length = self.position.shape[1]
        past = keys - length
        visible_length = self.visible_length.unsqueeze(2)
        if self.fresh and past == 0 and self.reset is None and length <= self.window:
            yield slice(0, length), slice(0, length), None
            return
        for start in range(0, length, self.window):
            stop = min(start + self.window, length)
            first = max(0, past + start - self.window + 1)
            queries = torch.arange(past + start, past + stop, device=visible_length.device)
            distance = queries.unsqueeze(1) - torch.arange(first, past + stop, device=visible_length.device)
            masked = (distance < 0) | (distance > visible_length[:, start:stop])
            mask = torch.zeros(masked.shape, dtype=dtype, device=visible_length.device)
            mask = mask.masked_fill(masked, -torch.inf).unsqueeze(1)
            yield slice(start, stop), slice(first, past + stop), mask
