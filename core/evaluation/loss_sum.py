"""Mean losses with their standard errors, in memory that doesn't grow with the text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float64]
STRETCH = 256
"""This many consecutive tokens count as one measurement, because neighboring tokens' losses depend on each
other."""


@dataclass
class LossSum:
    """The losses of tokens, added up over stretches of a text.

    Attributes:
        tokens: how many were added.
        nats: the sum of their losses.
    """

    tokens: int = 0
    nats: float = 0.0
    _stretches: int = 0
    _tokens_squared: float = 0.0
    _nats_times_tokens: float = 0.0
    _nats_squared: float = 0.0

    def add(self, losses: Losses) -> None:
        """Add the losses (N,) of consecutive tokens, in nats."""
        if not len(losses):
            return
        starts = np.arange(0, len(losses), STRETCH)
        nats = np.add.reduceat(losses, starts)
        counts = np.diff(np.append(starts, len(losses))).astype(np.float64)
        self.tokens += len(losses)
        self.nats += float(nats.sum())
        self._stretches += len(starts)
        self._tokens_squared += float((counts**2).sum())
        self._nats_times_tokens += float((nats * counts).sum())
        self._nats_squared += float((nats**2).sum())

    @property
    def mean(self) -> float:
        """Nats per token; nan for no tokens."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, from the spread of the stretches' means; nan for fewer than two."""
        if self._stretches < 2:
            return math.nan
        mean = self.mean
        spread = self._nats_squared - 2 * mean * self._nats_times_tokens + mean**2 * self._tokens_squared
        return math.sqrt(max(0.0, spread) * self._stretches / (self._stretches - 1)) / self.tokens


@dataclass
class TextLoss:
    """The loss over some text read in two ways, and the difference between them.

    Attributes:
        streamed: the state carried from the document's beginning.
        windows: from an empty state every `block_size` tokens.
        gain: windows minus streamed, token by token: what the carried state is worth.
        characters: of the text.
        bytes: of the text in UTF-8.
    """

    streamed: LossSum
    windows: LossSum
    gain: LossSum
    characters: int = 0
    bytes: int = 0

    @classmethod
    def empty(cls) -> TextLoss:
        """No text yet."""
        return cls(LossSum(), LossSum(), LossSum())

    def add(self, streamed: Losses, windows: Losses) -> None:
        """Add the losses (N,) of the same consecutive tokens."""
        self.streamed.add(streamed)
        self.windows.add(windows)
        self.gain.add(windows - streamed)

    def figures(self) -> dict[str, Any]:
        """All figures for a report: numbers that may be nan or infinite."""
        return {
            "tokens": self.streamed.tokens,
            "characters": self.characters,
            "bytes": self.bytes,
            "streamed": self._units(self.streamed),
            "windows": self._units(self.windows),
            "gain": self.gain.mean,
            "gain_standard_error": self.gain.standard_error,
        }

    def _units(self, loss: LossSum) -> dict[str, float]:
        """The loss in the units that people compare."""
        return {
            "nats_per_token": loss.mean,
            "standard_error": loss.standard_error,
            "nats_per_character": loss.nats / self.characters if self.characters else math.nan,
            "bits_per_byte": loss.nats / math.log(2) / self.bytes if self.bytes else math.nan,
            "perplexity": math.exp(loss.mean) if loss.mean < 700 else math.inf if loss.tokens else math.nan,
        }
