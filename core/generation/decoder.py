"""A model in the middle of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from core.data.tokenizer.tokenizer import Tokenizer
from core.model import GPT, ModelState

PREFILL_TOKENS = 256
"""Tokens of a prompt that are read at once; a stop takes effect between such pieces."""


def never() -> bool:
    """A `stopped` that never stops."""
    return False


class Decoder:
    """A model in the middle of a text: its state, and the tokens that it hasn't read yet.

    States are never written to, so a fork is cheap, and two forks don't disturb each other.
    """

    def __init__(self, model: GPT, eot: int) -> None:
        """A decoder at the start of a new document, which the token `eot` starts."""
        self.model = model
        self.eot = eot
        self.state: ModelState | None = None
        """The model's state after the text it has read; None before the first token."""
        self.unread: list[int] = [eot]
        self.seen = torch.zeros(model.vocab_size, dtype=torch.bool)
        """Which tokens occur in the text, (V,)."""
        self.healing: int | None = None
        """The prompt's last token, withheld as long as the text after it may turn it into a longer one."""
        self._logits: Tensor | None = None

    def fork(self) -> Decoder:
        """A second decoder at the same position."""
        other = Decoder(self.model, self.eot)
        other.state, other._logits, other.healing = self.state, self._logits, self.healing
        other.unread, other.seen = list(self.unread), self.seen.clone()
        return other

    def append(self, tokens: Iterable[int]) -> None:
        """Continue the text with tokens."""
        tokens = [int(token) for token in tokens]
        if self.healing is not None and tokens:
            tokens, self.healing = [self.healing, *tokens], None
        self.unread += tokens
        self.seen[tokens] = True

    def prompt(self, tokenizer: Tokenizer, text: str) -> None:
        """Continue with a prompt, and withhold its last token if a longer one may replace it.

        A model has never seen "She" and then " " and then "said" if " said" is one token; so the first
        generated token may be any that begins with the bytes of the prompt's last one. This is known as token
        healing.
        """
        tokens = tokenizer.encode(text).tolist()
        if not tokens:
            return
        self.append(tokens[:-1])
        if self.healing is not None:
            self.append([tokens[-1]])
        elif len(extensions(tokenizer, tokens[-1])) > 1:
            self.healing = tokens[-1]
        else:
            self.append([tokens[-1]])

    def move_to(self, state: ModelState, tokens: list[int]) -> None:
        """Move to where a sampler has continued the text by `tokens`; `state` includes all but the last."""
        self.state, self.unread, self._logits = state, tokens[-1:], None
        self.seen[tokens] = True

    @torch.inference_mode()
    def next_logits(self, stopped: Callable[[], bool] = never) -> Tensor | None:
        """Read the unread tokens. Returns the next token's logits, (V,) float32 on the CPU.

        None if `stopped` interrupted it; the rest stays unread.
        """
        return self._logits if self.read(stopped) else None

    @torch.inference_mode()
    def read(self, stopped: Callable[[], bool] = never, *, all_but: int = 0) -> bool:
        """Read the unread tokens except the last ones. False if `stopped` interrupted it."""
        device = self.model.embedding.weight.device
        while len(self.unread) > all_but:
            if stopped():
                return False
            piece = self.unread[: min(PREFILL_TOKENS, len(self.unread) - all_but)]
            tokens = torch.tensor([piece], device=device)
            doc_start = tokens == self.eot if self.eot in piece else None
            features, self.state = self.model.features(tokens, self.state, doc_start)
            self.unread = self.unread[len(piece) :]
            if not self.unread:
                self._logits = self.model.logits(features[0, -1]).float().cpu()
        return True


def extensions(tokenizer: Tokenizer, token: int) -> list[int]:
    """The tokens whose bytes begin with those of `token`, including itself."""
    start = tokenizer.token_bytes(token)
    return [
        other
        for other in range(tokenizer.vocab_size)
        if other != tokenizer.eot and tokenizer.token_bytes(other).startswith(start)
    ]
