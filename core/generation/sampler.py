"""Choosing the next tokens of a text: the protocol, and the sampler on the host.

The same seed gives the same text on the same kind of device: here random numbers come from the sampler's own
generator; on CUDA the device samples (cuda/sampler.py), some tokens ahead (cuda/lookahead.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from core.config.sampling import SamplingSettings
from core.generation.decoder import Decoder


class SampledToken(NamedTuple):
    """A token that continues a text. Probabilities are the model's own, before temperature and filters."""

    token: int
    probability: float
    finite: bool
    """Whether the logits were numbers; if not, the token means nothing."""
    alternatives: list[tuple[int, float]]
    """The most probable tokens and their probabilities, the best first."""


class Sampler(Protocol):
    """Continues a decoder's text, token by token. Only while it is leased (`generation.py`)."""

    def next_token(self, stopped: Callable[[], bool]) -> SampledToken | None:
        """The next token of the text; None if `stopped` interrupted it."""


def next_token_probabilities(
    logits: Tensor, settings: SamplingSettings, seen: Tensor | None = None
) -> Tensor:
    """The probabilities (V,) for sampling the next token.

    `logits` is (V,) float32, `seen` (V,) bool the tokens that the repetition penalty applies to.
    """
    if seen is not None and settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, penalized, logits)
    if settings.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1)
    # The best one becomes 0 first, so that a tiny temperature can't produce infinities.
    logits = (logits - logits.max()) / settings.temperature
    if 0 < settings.top_k < len(logits):
        best = logits.topk(settings.top_k)
        logits = torch.full_like(logits, -math.inf).scatter_(0, best.indices, best.values)
    probabilities = logits.softmax(0)
    if settings.min_p > 0:
        enough = probabilities >= settings.min_p * probabilities.max()
        probabilities = probabilities * enough
    if settings.top_p < 1:
        ordered, order = (probabilities / probabilities.sum()).sort(descending=True)
        before = ordered.cumsum(0) - ordered
        probabilities = torch.zeros_like(ordered).scatter_(0, order, ordered * (before < settings.top_p))
    return probabilities


class HostSampler:
    """Samples on the CPU from the logits that a decoder computes."""

    def __init__(self, decoder: Decoder, settings: SamplingSettings) -> None:
        self._decoder, self._settings = decoder, settings
        self._random = torch.Generator().manual_seed(settings.seed)

    def next_token(
        self,
        stopped: Callable[[], bool],
        *,
        allowed: Iterable[int] | None = None,
        chosen: int | None = None,
    ) -> SampledToken | None:
        """The next token: one of the `allowed`, or the `chosen` one; None if `stopped` interrupted it."""
        logits = self._decoder.next_logits(stopped)
        if logits is None:
            return None
        if not math.isfinite(logits.max()):
            return SampledToken(0, math.nan, finite=False, alternatives=[])
        if allowed is not None:
            indices = torch.tensor(list(allowed))
            logits = torch.full_like(logits, -math.inf).index_copy_(0, indices, logits[indices])
        token = self._sample(logits) if chosen is None else chosen
        own = logits.softmax(0)
        best = own.topk(min(self._settings.alternatives, len(own)))
        if allowed is not None and math.isfinite(logits[token]):
            self._decoder.healing = None  # this token also replaces the withheld one
        self._decoder.append([token])
        alternatives = list(zip(best.indices.tolist(), best.values.tolist()))
        return SampledToken(token, float(own[token]), finite=True, alternatives=alternatives)

    def _sample(self, logits: Tensor) -> int:
        weights = next_token_probabilities(logits, self._settings, self._decoder.seen)
        return int(torch.multinomial(weights, 1, generator=self._random))
