"""Decoding: a prompt becomes a stream of tokens with their probabilities.

The model's state is carried, so a token costs the same however much was written before it. The same seed
gives the same text: numbers are drawn on the CPU from a generator of the sample's own.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.errors import UserError
from core.model import GPT, ModelState
from core.ops.dispatch import takes_triton
from core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from core.decoding import Reader

PREFILL_TOKENS = 256
"""Tokens of a prompt read at once; between such pieces a stop can take effect."""


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


class Decoder:
    """A model in the middle of a text: its state, and the tokens it was given but has not read yet.

    States are never written to, so a fork is cheap and two forks do not disturb each other.
    """

    def __init__(self, model: GPT, eot: int) -> None:
        """A decoder at the start of a new document, which `eot` opens."""
        self.model = model
        self.eot = eot
        self._state: ModelState | None = None
        self._reader: Reader | None = None
        self.unread: list[int] = [eot]
        self.seen = torch.zeros(model.vocab_size, dtype=torch.bool)
        self.held: int | None = None
        """The prompt's last token, withheld while the text after it may still make it a longer one."""
        self._logits: Tensor | None = None

    @property
    def state(self) -> ModelState | None:
        """What the model remembers of the text it has read; None before the first token."""
        if self._reader is not None and self._reader.owner is self:
            return self._reader.state()
        return self._state

    @state.setter
    def state(self, state: ModelState | None) -> None:
        if self._reader is not None and self._reader.owner is self:
            self._reader.owner = None
        self._state = state

    def fork(self) -> Decoder:
        """A second decoder at the same place."""
        other = Decoder(self.model, self.eot)
        other.state, other._logits = self.state, self._logits
        other.unread, other.seen, other.held = list(self.unread), self.seen.clone(), self.held
        return other

    def append(self, tokens: Iterable[int]) -> None:
        """Continue the text with tokens."""
        tokens = [int(token) for token in tokens]
        if self.held is not None and tokens:
            tokens, self.held = [self.held, *tokens], None
        self.unread += tokens
        self.seen[tokens] = True

    def prompt(self, tokenizer: Tokenizer, text: str) -> None:
        """Continue with a prompt, whose last token waits where a longer one may take its place.

        A model has never seen "She" and then " " and then "said" where " said" is one token; so the
        first token written may be any that begins with the bytes of the last one of the prompt.
        """
        tokens = tokenizer.encode(text).tolist()
        if not tokens:
            return
        self.append(tokens[:-1])
        if self.held is not None:
            self.append([tokens[-1]])
        elif len(extensions(tokenizer, tokens[-1])) > 1:
            self.held = tokens[-1]
        else:
            self.append([tokens[-1]])

    @torch.inference_mode()
    def next_logits(self, stopped: Callable[[], bool] = lambda: False) -> Tensor | None:
        """Read what is unread. Returns the next token's logits, (V,) float32 on the CPU.

        None if `stopped` said so before the end; the rest stays unread.
        """
        device = self.model.embedding.weight.device
        while self.unread:
            if stopped():
                return None
            piece = self.unread[:PREFILL_TOKENS]
            if len(piece) == 1 and self._borrow_reader():
                assert self._reader is not None
                self._logits = self._reader.read(torch.tensor(piece, device=device))[0].cpu()
                self.unread = []
                break
            tokens = torch.tensor([piece], device=device)
            starts = tokens == self.eot if self.eot in piece else None
            features, self.state = self.model.features(tokens, self.state, starts)
            self.unread = self.unread[PREFILL_TOKENS:]
            if not self.unread:
                self._logits = self.model.logits(features[0, -1]).float().cpu()
        return self._logits

    def _borrow_reader(self) -> bool:
        """Have the model's captured reader go on from this text's state, on CUDA where there is one."""
        if self._reader is not None and self._reader.owner is self:
            return True
        if self._state is None or not takes_triton(self.model.embedding.weight):
            return False
        from core.decoding import shared_reader

        reader = shared_reader(self.model, self.eot)
        if reader is None:
            return False
        if isinstance(reader.owner, Decoder):
            reader.owner.state = reader.owner.state  # takes its state back before it is overwritten
        reader.load(self._state)
        self._reader, reader.owner = reader, self
        return True


def extensions(tokenizer: Tokenizer, token: int) -> list[int]:
    """The tokens whose bytes begin with those of `token`, itself included."""
    start = tokenizer.token_bytes(token)
    return [
        other
        for other in range(tokenizer.vocab_size)
        if other != tokenizer.eot and tokenizer.token_bytes(other).startswith(start)
    ]


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


class TextStream:
    """Token bytes to text that is safe to show: whole characters only, and nothing of a stop text."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Take in bytes; returns the text that is certain now. Sets `stopped` at a stop text."""
        held = self._held + self._decoder.decode(data)
        found = [at for text in self.stop if (at := held.find(text)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)]
        # The longest end of the text that may yet grow into a stop text stays back.
        size = max((_overlap(held, text) for text in self.stop), default=0)
        self._held = held[len(held) - size :]
        return held[: len(held) - size]

    def flush(self) -> str:
        """What was held back, when no more bytes come."""
        held = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


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
        for count in range(1, self._config.max_new_tokens + 1):
            logits = None if self._stopped() else self._decoder.next_logits(self._stopped)
            if logits is None:
                self.reason = "stopped"
                self.tail = self._text.flush()
                return
            yield self._step(logits, last=count == self._config.max_new_tokens)
            if self.reason:
                return

    def _step(self, logits: Tensor, last: bool) -> Step:
        if not math.isfinite(logits.max()):
            raise UserError(
                "the model's output is not a number; its training diverged, use another checkpoint"
            )
        index, token = len(self.tokens), self._first
        if self._decoder.held is not None:
            logits = self._fitting(logits, self._decoder.held)
        if token is None:
            drawn = candidates(logits, self._config, self._decoder.seen)
            token = int(torch.multinomial(drawn, 1, generator=self._random))
        self._first = None
        own = logits.softmax(0)
        best = own.topk(min(self._config.alternatives, len(own)))
        alternatives = tuple(
            (token, self._bytes(index, token).decode("utf-8", "replace"), probability)
            for token, probability in zip(best.indices.tolist(), best.values.tolist())
        )
        ends = token == self._decoder.eot
        text = "" if ends else self._text.push(self._bytes(index, token))
        if ends or self._text.stopped:
            self.reason = "stop"
        elif last:
            self.reason = "length"
        if self.reason and not self._text.stopped:
            text += self._text.flush()
        if math.isfinite(logits[token]):
            self._decoder.held = None  # the token has taken its place
        self._decoder.append([token])
        self.tokens.append(token)
        return Step(index, token, text, float(own[token]), alternatives)

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
