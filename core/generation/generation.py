"""Generating: a prompt becomes a stream of tokens with their probabilities and their text.

The model's state is carried along, so every token takes the same time, however long the text is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.config.sampling import SamplingSettings
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.decoder import Decoder, extensions, never
from core.generation.sampler import HostSampler, SampledToken, Sampler
from core.generation.text_stream import TextStream
from core.model import GPT
from core.ops.dispatch import DECODING, takes_triton


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a generation. Probabilities are the model's own, before temperature and filters."""

    index: int
    token: int
    text: str
    """The text that became certain with this token; all tokens' texts together make up the whole."""
    probability: float
    alternatives: tuple[tuple[int, str, float], ...]
    """The most probable tokens: id, text, probability."""
    ends_document: bool
    """Whether the document ends here; this token has no text."""


@contextmanager
def leased_sampler(
    decoder: Decoder, settings: SamplingSettings, host: HostSampler, sampled: int
) -> Iterator[Sampler]:
    """The sampler for the rest of a text: the device's if possible, otherwise `host`.

    `sampled` tokens of the generation were sampled before. Until the block ends, only the sampler may move
    the decoder; afterwards the decoder is at the end of the text.
    """
    if takes_triton(decoder.model.embedding.weight, DECODING):
        from core.generation.cuda.graph_decoder import shared_graph_decoder
        from core.generation.cuda.lookahead import LookaheadSampler

        graph = shared_graph_decoder(decoder.model, decoder.eot)
        if graph is not None:
            sampler = LookaheadSampler(graph, decoder, settings, sampled)
            try:
                yield sampler
            finally:
                sampler.release()
            return
    yield host


class Generation:
    """A text being generated: iterate to get its tokens; afterwards `reason` says why it ended.

    `reason` is "length", "stop" (a stop text), "end" (of the document) or "stopped" (from outside). The
    decoder stays at the end of the text, so that another generation can continue.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        settings: SamplingSettings,
        *,
        stopped: Callable[[], bool] = never,
        earlier: Iterable[int] = (),
        first: int | None = None,
        healed: int | None = None,
    ) -> None:
        """`earlier` are tokens that were generated before, which the decoder has; `first` is not sampled but
        given.

        `healed` is the prompt's token that the first of `earlier` replaced, if there was one.

        Raises UserError if `first` isn't in the vocabulary.
        """
        if first is not None and not 0 <= first < decoder.model.vocab_size:
            raise UserError(
                f"token is {first}; accepted: a whole number from 0 to {decoder.model.vocab_size - 1}"
            )
        self.reason = ""
        self.tokens = list(earlier)
        self.tail = ""
        """Text that was still held back when a stop came from outside."""
        self._decoder, self._tokenizer, self._settings = decoder, tokenizer, settings
        self._stopped, self._first = stopped, first
        self._text = TextStream(settings.stop)
        self._healed = decoder.healing if healed is None else healed
        for index, token in enumerate(self.tokens):
            self._text.push(self._bytes(index, token))
        self._text.stopped = False

    def __iter__(self) -> Iterator[GeneratedToken]:
        decoder, most = self._decoder, self._settings.max_new_tokens
        host = HostSampler(decoder, self._settings)
        on_host = 0
        if self._first is not None or decoder.healing is not None or not decoder.unread:
            # A token that is given, or that replaces the prompt's last one: the device can't do that.
            on_host = 1
            yield from self._continued(lambda stopped: self._first_token(host), range(1, 2))
        if not self.reason:
            with leased_sampler(decoder, self._settings, host, on_host) as sampler:
                yield from self._continued(sampler.next_token, range(on_host + 1, most + 1))

    def _continued(
        self, next_token: Callable[[Callable[[], bool]], SampledToken | None], counts: Iterable[int]
    ) -> Iterator[GeneratedToken]:
        for count in counts:
            sampled = None if self._stopped() else next_token(self._stopped)
            if sampled is None:
                self.reason = "stopped"
                self.tail = self._text.flush()
                return
            yield self._with_text(sampled, last=count == self._settings.max_new_tokens)
            if self.reason:
                return

    def _first_token(self, host: HostSampler) -> SampledToken | None:
        healing = self._decoder.healing
        allowed = None if healing is None else extensions(self._tokenizer, healing)
        return host.next_token(self._stopped, allowed=allowed, chosen=self._first)

    def _with_text(self, sampled: SampledToken, last: bool) -> GeneratedToken:
        """A token that the decoder has, with its text. Sets `reason` if the text ends here."""
        if not sampled.finite:
            raise UserError(
                "the model's output is not a number; its training diverged, use another checkpoint"
            )
        index = len(self.tokens)
        ends = sampled.token == self._decoder.eot
        text = self._text.flush() if ends else self._text.push(self._bytes(index, sampled.token))
        if self._text.stopped:
            self.reason = "stop"
        elif ends and not self._settings.ignore_end:
            self.reason = "end"
        elif last:
            self.reason = "length"
            text += self._text.flush()
        self.tokens.append(sampled.token)
        alternatives = tuple(
            (other, self._bytes(index, other).decode("utf-8", "replace"), share)
            for other, share in sampled.alternatives
        )
        return GeneratedToken(index, sampled.token, text, sampled.probability, alternatives, ends)

    def _bytes(self, index: int, token: int) -> bytes:
        """The text of a token: all its bytes except those that the prompt already has."""
        # A model may have more rows than its tokenizer has tokens; such a row has no text.
        data = self._tokenizer.token_bytes(token) if token < self._tokenizer.vocab_size else b""
        if index == 0 and self._healed is not None:
            data = data.removeprefix(self._tokenizer.token_bytes(self._healed))
        return data


def generate_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings | None = None
) -> str:
    """The text that the model generates after `prompt` at the start of a document.

    Runs in evaluation mode, and restores the model's mode and torch's random state.
    """
    decoder = Decoder(model, tokenizer.eot)
    decoder.prompt(tokenizer, prompt)
    was_training = model.training
    model.eval()
    try:
        generation = Generation(decoder, tokenizer, settings or SamplingSettings())
        return "".join(token.text for token in generation)
    finally:
        model.train(was_training)
