"""A model reads documents, and the loss of every token is measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.errors import UserError
from core.evaluation.loss_sum import Losses, TextLoss
from core.model import GPT, ModelState
from core.ops.linear_cross_entropy import token_cross_entropy

Ids = npt.NDArray[np.integer[Any]]
CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""About how many tokens to read at once: enough to keep the device busy, few enough to report often."""
FIRST_BUCKET = 64


class Buckets:
    """The loss by position in the document: positions 0 to 63, 64 to 127, 128 to 255 and so on."""

    def __init__(self) -> None:
        self._losses: list[TextLoss] = []

    def add(self, position: int, streamed: Losses, windows: Losses) -> None:
        """Add the losses (N,) of consecutive tokens, the first of which has this position in its document."""
        end = position + len(streamed)
        for index, (low, high) in enumerate(_edges(end)):
            if index == len(self._losses):
                self._losses.append(TextLoss.empty())
            inside = slice(max(0, low - position), max(0, min(high, end) - position))
            self._losses[index].add(streamed[inside], windows[inside])

    def figures(self) -> list[dict[str, Any]]:
        """For each bucket: its first position, the one after its last, losses and their difference."""
        return [
            {
                "from": low,
                "to": high,
                "tokens": loss.streamed.tokens,
                "streamed": loss.streamed.mean,
                "windows": loss.windows.mean,
                "gain": loss.gain.mean,
                "gain_standard_error": loss.gain.standard_error,
            }
            for loss, (low, high) in zip(self._losses, _edges(1 << 62), strict=False)
        ]


def _edges(end: int) -> Iterator[tuple[int, int]]:
    """The buckets that begin before `end`."""
    low, high = 0, FIRST_BUCKET
    while low < end:
        yield low, high
        low, high = high, 2 * high


class DocumentReader:
    """Reads one document: every token is predicted from all before it, the first from the mark that opens it.

    Streamed, the state is carried from chunk to chunk, so cutting the text never changes the result. In
    windows, every `block_size` tokens begin from an empty state, as models with a fixed window are evaluated.
    """

    def __init__(self, model: GPT, eot: int) -> None:
        self._model = model
        self._eot = eot
        self._state: ModelState | None = None
        self._previous = eot

    @torch.inference_mode()
    def read(self, targets: Ids) -> tuple[Losses, Losses]:
        """The losses (N,) in nats of the document's next tokens, streamed and in windows.

        All chunks of a document except its last must have a multiple of `block_size` tokens. Raises UserError
        if the model's output isn't a number.
        """
        y = targets.astype(np.int64)
        x = np.append(self._previous, y[:-1])
        self._previous = int(y[-1])
        device = self._model.embedding.weight.device
        tokens = torch.from_numpy(x).to(device)
        opens = torch.zeros(1, len(x), dtype=torch.bool, device=device)
        opens[0, 0] = self._state is None
        features, self._state = self._model.features(tokens[None], self._state, opens)
        goal = torch.from_numpy(y).to(device)
        return self._losses(features[0], goal), self._losses(self._in_windows(tokens), goal)

    def _in_windows(self, tokens: Tensor) -> Tensor:
        """The features (N, C) of tokens (N,) read in windows; the last window is padded."""
        size = self._model.config.block_size
        rows = -(-len(tokens) // size)
        padded = torch.full((rows * size,), self._eot, dtype=tokens.dtype, device=tokens.device)
        padded[: len(tokens)] = tokens
        opens = torch.zeros(rows, size, dtype=torch.bool, device=tokens.device)
        opens[:, 0] = True
        features, _ = self._model.features(padded.view(rows, size), None, opens)
        return features.flatten(0, 1)[: len(tokens)]

    def _losses(self, features: Tensor, targets: Tensor) -> Losses:
        """Cross entropy (N,) from features (N, C)."""
        losses = token_cross_entropy(
            features, self._model.head.weight, targets, vocab_size=self._model.vocab_size
        )
        values: Losses = losses.cpu().numpy().astype(np.float64)
        if not np.isfinite(values).all():
            raise UserError(
                "the model's output is not a number; its training diverged, use another checkpoint"
            )
        return values


def chunk_tokens(model: GPT) -> int:
    """How many tokens of a document to read at once: whole windows."""
    size = model.config.block_size
    return size * max(1, CHUNK_TOKENS.get(model.embedding.weight.device.type, 1024) // size)


def in_chunks(pieces: Iterable[Ids], size: int) -> Iterator[Ids]:
    """The same tokens in chunks of `size`; the last has the remainder, if any."""
    held: list[Ids] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(held)
            whole = count // size * size
            yield from joined[:whole].reshape(-1, size)
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)
