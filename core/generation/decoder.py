"""A model in the middle of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.data.tokenizer.tokenizer import Tokenizer
from core.model import GPT, ModelState
from core.ops.dispatch import takes_triton

if TYPE_CHECKING:
    from core.generation.cuda.graph_decoder import Reader
    from core.generation.cuda.lookahead import Writer
    from core.generation.cuda.sampler import Drawn
    from core.generation.sampling import SamplingConfig

PREFILL_TOKENS = 256
"""Tokens of a prompt read at once; between such pieces a stop can take effect."""


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
        self._writer: Writer | None = None
        self._writes_for: object = None
        self.unread: list[int] = [eot]
        self._seen = torch.zeros(model.vocab_size, dtype=torch.bool)
        self._written: list[int] = []
        self.held: int | None = None
        """The prompt's last token, withheld while the text after it may still make it a longer one."""
        self._logits: Tensor | None = None

    @property
    def state(self) -> ModelState | None:
        """What the model remembers of the text it has read; None before the first token."""
        if self._reader is not None and self._reader.owner is self:
            self.settle()
            return self._reader.state()
        return self._state

    @state.setter
    def state(self, state: ModelState | None) -> None:
        if self._reader is not None and self._reader.owner is self:
            self._reader.owner = None
        self._writer = None
        self._state = state

    @property
    def seen(self) -> Tensor:
        """The tokens that the text has, (V,) bool."""
        self._seen[self._written] = True
        self._written = []
        return self._seen

    def settle(self) -> None:
        """Go back to where the text ends, if the device has written ahead of it."""
        if self._writer is not None:
            self._writer.settle()
            self._writer = None

    def fork(self) -> Decoder:
        """A second decoder at the same place."""
        other = Decoder(self.model, self.eot)
        other.state, other._logits = self.state, self._logits
        other.unread, other._seen, other.held = list(self.unread), self.seen.clone(), self.held
        return other

    def append(self, tokens: Iterable[int]) -> None:
        """Continue the text with tokens."""
        self.settle()
        tokens = [int(token) for token in tokens]
        if self.held is not None and tokens:
            tokens, self.held = [self.held, *tokens], None
        self.unread += tokens
        self._written += tokens

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
        self.settle()
        return self._logits if self._read(0, stopped) else None

    @torch.inference_mode()
    def draw(
        self, config: SamplingConfig, drawn: int, whom: object, stopped: Callable[[], bool]
    ) -> Drawn | None:
        """Continue the text with a token that the device draws, the `drawn`-th with this seed.

        None where the host has to draw. `whom` is who the device may write ahead for: the same one asks
        for the next token, with the same `config`.
        """
        if self._writer is None or self._writes_for is not whom:
            self.settle()
            if not takes_triton(self.model.embedding.weight) or not self.unread or not self._read(1, stopped):
                return None
            if self._state is None:
                self.state = self.model.initial_state(1)
            if not self._borrow_reader():
                return None
            from core.generation.cuda.lookahead import Writer
            from core.generation.cuda.sampler import Options

            assert self._reader is not None
            options = Options(**{item.name: getattr(config, item.name) for item in fields(Options)})
            self._writer, self._writes_for = Writer(
                self._reader, self.unread[0], options, self.seen,
                seed=config.seed, drawn=drawn, most=config.max_new_tokens - drawn,
            ), whom  # fmt: skip
        token = self._writer.take()
        self.unread = [token.token]
        self._written.append(token.token)
        return token

    def _read(self, rest: int, stopped: Callable[[], bool]) -> bool:
        """Read what is unread except the last `rest` tokens. False if `stopped` said so before the end."""
        device = self.model.embedding.weight.device
        while len(self.unread) > rest:
            if stopped():
                return False
            piece = self.unread[: min(PREFILL_TOKENS, len(self.unread) - rest)]
            if len(self.unread) == 1 and self._borrow_reader():
                assert self._reader is not None
                self._logits = self._reader.read(torch.tensor(piece, device=device))[0].cpu()
                self.unread = []
                break
            tokens = torch.tensor([piece], device=device)
            starts = tokens == self.eot if self.eot in piece else None
            features, self.state = self.model.features(tokens, self.state, starts)
            self.unread = self.unread[len(piece) :]
            if not self.unread:
                self._logits = self.model.logits(features[0, -1]).float().cpu()
        return True

    def _borrow_reader(self) -> bool:
        """Have the model's captured reader go on from this text's state, on CUDA where there is one."""
        if self._reader is not None and self._reader.owner is self:
            return True
        if self._state is None or not takes_triton(self.model.embedding.weight):
            return False
        from core.generation.cuda.graph_decoder import shared_reader

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
