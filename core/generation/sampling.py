"""Decoding: a prompt becomes a stream of tokens with their probabilities.

The model's state is carried, so a token costs the same however much was written before it. The same seed
gives the same text on the same kind of device: on the CPU numbers are drawn from a generator of the sample's
own; on CUDA the device samples (cuda/sampler.py), some tokens ahead of the reader (cuda/lookahead.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.decoder import Decoder as Decoder
from core.generation.decoder import extensions as extensions
from core.generation.text_stream import TextStream as TextStream
from core.model import GPT


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen, and when the text ends."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    """0 takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens, 0 = all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability."""
    min_p: float = 0.0
    """Only tokens with at least this share of the best one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text already has become less likely."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the generation when they appear; they are not part of it."""
    alternatives: int = 0
    """How many of the most probable tokens to report at every step."""

    def __post_init__(self) -> None:
        checks: list[tuple[str, bool, str]] = [
            ("max_new_tokens", 1 <= self.max_new_tokens <= 1 << 30, "a whole number from 1 to 2^30"),
            ("temperature", 0 <= self.temperature <= 100, "a number from 0 to 100"),
            ("top_k", self.top_k >= 0, "a whole number of at least 0, 0 = all"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "a number above 0 and at most 100"),
            ("seed", 0 <= self.seed < 1 << 63, "a whole number from 0 to 2^63 - 1"),
            ("stop", all(self.stop), "a list of texts, none of them empty"),
            ("alternatives", 0 <= self.alternatives <= 1000, "a whole number from 0 to 1000"),
        ]
        for key, good, accepted in checks:
            if not good:
                raise UserError(f"{key} is {getattr(self, key)}; accepted: {accepted}")

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> SamplingConfig:
        """The configuration in a request; keys that are missing or null take the default.

        Raises UserError for a value of the wrong type or out of bounds; other keys are not looked at.
        """
        chosen: dict[str, Any] = {}
        for item in fields(SamplingConfig):
            value = values.get(item.name)
            if value is None:
                continue
            kind = type(item.default)
            if kind is tuple:
                value = [value] if isinstance(value, str) else value
                if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                    raise UserError(f"{item.name} is {value!r}; accepted: a list of texts")
                value = tuple(value)
            elif kind is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            elif type(value) is not kind:
                accepted = "a whole number" if kind is int else "a number"
                raise UserError(f"{item.name} is {value!r}; accepted: {accepted}")
            chosen[item.name] = value
        return SamplingConfig(**chosen)


def candidates(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The distribution (V,) to draw the next token from.

    `logits` is (V,) float32, `seen` (V,) bool the tokens that the repetition penalty applies to.
    """
    if seen is not None and config.repetition_penalty != 1:
        penalised = torch.where(
            logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty
        )
        logits = torch.where(seen, penalised, logits)
    if config.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1)
    # The best one becomes 0 first, so that a tiny temperature cannot make an infinity.
    logits = (logits - logits.max()) / config.temperature
    if 0 < config.top_k < len(logits):
        best = logits.topk(config.top_k)
        logits = torch.full_like(logits, -math.inf).scatter_(0, best.indices, best.values)
    probabilities = logits.softmax(0)
    if config.min_p > 0:
        enough = probabilities >= config.min_p * probabilities.max()
        probabilities = probabilities * enough
    if config.top_p < 1:
        ordered, order = (probabilities / probabilities.sum()).sort(descending=True)
        before = ordered.cumsum(0) - ordered
        probabilities = torch.zeros_like(ordered).scatter_(0, order, ordered * (before < config.top_p))
    return probabilities


@dataclass(frozen=True)
class Step:
    """One token of a generation. Probabilities are the model's own, before temperature and filters."""

    index: int
    token: int
    text: str
    """The text that became certain with this token; the pieces of all steps join to the whole."""
    probability: float
    alternatives: tuple[tuple[int, str, float], ...]
    """The most probable tokens: id, text, probability."""


class Generation:
    """One text being written: iterate to get its steps; afterwards `reason` says why it ended.

    `reason` is "length", "stop" (a stop text, or the document's end) or "stopped" (from outside). The
    decoder is left at the end of the text, so that another generation can carry on.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        config: SamplingConfig,
        *,
        stopped: Callable[[], bool] = lambda: False,
        written: Iterable[int] = (),
        first: int | None = None,
        held: int | None = None,
    ) -> None:
        """`written` are earlier tokens of the same text, which the decoder has; `first` is not drawn but set.

        `held` is the prompt's token that the first of `written` took the place of, if there was one.

        Raises UserError if `first` is not in the vocabulary.
        """
        if first is not None and not 0 <= first < decoder.model.vocab_size:
            raise UserError(
                f"token is {first}; accepted: a whole number from 0 to {decoder.model.vocab_size - 1}"
            )
        self.reason = ""
        self.tokens = list(written)
        self.tail = ""
        """Text that was still held back when a stop from outside came."""
        self._decoder, self._tokenizer, self._config = decoder, tokenizer, config
        self._stopped, self._first = stopped, first
        self._text = TextStream(config.stop)
        self._random = torch.Generator().manual_seed(config.seed)
        self._held = decoder.held if held is None else held
        for index, token in enumerate(self.tokens):
            self._text.push(self._bytes(index, token))
        self._text.stopped = False

    def __iter__(self) -> Iterator[Step]:
        most = self._config.max_new_tokens
        try:
            for count in range(1, most + 1):
                step = None if self._stopped() else self._step(count - 1, last=count == most)
                if step is None:
                    self.reason = "stopped"
                    self.tail = self._text.flush()
                    return
                yield step
                if self.reason:
                    return
        finally:
            self._decoder.settle()

    def _step(self, drawn: int, last: bool) -> Step | None:
        """The next step, after `drawn` others; None if a stop came before."""
        if self._first is None and self._decoder.held is None:
            found = self._decoder.draw(self._config, drawn, self, self._stopped)
            if found is not None:
                self._demand(found.finite)
                return self._shown(found.token, found.probability, found.alternatives, last)
        logits = self._decoder.next_logits(self._stopped)
        return None if logits is None else self._drawn(logits, last)

    def _demand(self, finite: bool) -> None:
        if not finite:
            raise UserError(
                "the model's output is not a number; its training diverged, use another checkpoint"
            )

    def _drawn(self, logits: Tensor, last: bool) -> Step:
        """The step that the host draws."""
        self._demand(math.isfinite(logits.max()))
        token = self._first
        if self._decoder.held is not None:
            logits = self._fitting(logits, self._decoder.held)
        if token is None:
            drawn = candidates(logits, self._config, self._decoder.seen)
            token = int(torch.multinomial(drawn, 1, generator=self._random))
        self._first = None
        own = logits.softmax(0)
        best = own.topk(min(self._config.alternatives, len(own)))
        if math.isfinite(logits[token]):
            self._decoder.held = None  # the token has taken its place
        self._decoder.append([token])
        return self._shown(token, float(own[token]), zip(best.indices.tolist(), best.values.tolist()), last)

    def _shown(self, token: int, probability: float, best: Iterable[tuple[int, float]], last: bool) -> Step:
        """The step of a token that the decoder has."""
        index = len(self.tokens)
        alternatives = tuple(
            (other, self._bytes(index, other).decode("utf-8", "replace"), share) for other, share in best
        )
        ends = token == self._decoder.eot
        text = "" if ends else self._text.push(self._bytes(index, token))
        if ends or self._text.stopped:
            self.reason = "stop"
        elif last:
            self.reason = "length"
        if self.reason and not self._text.stopped:
            text += self._text.flush()
        self.tokens.append(token)
        return Step(index, token, text, probability, alternatives)

    def _fitting(self, logits: Tensor, held: int) -> Tensor:
        """The logits with only those tokens left that may stand where the prompt's last one would."""
        allowed = torch.tensor(extensions(self._tokenizer, held))
        return torch.full_like(logits, -math.inf).index_copy_(0, allowed, logits[allowed])

    def _bytes(self, index: int, token: int) -> bytes:
        """What a token adds to the text: all its bytes, less those that the prompt has already."""
        # A model may have more rows than its tokenizer has tokens; such a row stands for nothing.
        data = self._tokenizer.token_bytes(token) if token < self._tokenizer.vocab_size else b""
        if index == 0 and self._held is not None:
            data = data.removeprefix(self._tokenizer.token_bytes(self._held))
        return data


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, tokens: int, config: SamplingConfig | None = None
) -> str:
    """What the model writes after `prompt` at the start of a document, at most `tokens` tokens long.

    Runs in evaluation mode and leaves the model's mode and torch's random state as they were.
    """
    values = {item.name: getattr(config or SamplingConfig(), item.name) for item in fields(SamplingConfig)}
    decoder = Decoder(model, tokenizer.eot)
    decoder.prompt(tokenizer, prompt)
    was_training = model.training
    model.eval()
    try:
        generation = Generation(decoder, tokenizer, SamplingConfig(**values | {"max_new_tokens": tokens}))
        return "".join(step.text for step in generation)
    finally:
        model.train(was_training)
