"""Lookahead: the device samples a burst of tokens while the host still shows the previous ones.

The next token doesn't need the host, so tokens are read and sampled in bursts that grow. A burst begins by
saving the state. If a text ends inside a burst, that state is restored and only the tokens that were handed
out are read again, so that the text is where it would be if they had come one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.config.sampling import SamplingSettings
from core.generation.cuda.graph_decoder import GraphDecoder
from core.generation.cuda.sampler import read_records
from core.generation.decoder import Decoder
from core.generation.sampler import SampledToken

LONGEST = 16
"""Tokens per burst: from a few milliseconds' worth, so that text appears smoothly and stops quickly."""
AHEAD = 2
"""Bursts that are queued on the device at a time."""


@dataclass
class Burst:
    """Tokens that the device reads and samples in one go."""

    count: int
    before: list[Tensor]
    """The saved state that it started from."""
    records: Tensor
    """Where its records arrive on the host."""
    arrived: torch.cuda.Event | None


class LookaheadSampler:
    """Continues a decoder's text on a graph decoder, which it borrows at its first token.

    Another text may take over the graph decoder between two tokens; then it is borrowed again.
    """

    def __init__(
        self, graph: GraphDecoder, decoder: Decoder, settings: SamplingSettings, sampled: int
    ) -> None:
        """`sampled` tokens were sampled with these settings before."""
        self._graph, self._decoder, self._settings = graph, decoder, settings
        self._sampled = sampled
        self._text: BorrowedText | None = None

    def next_token(self, stopped: Callable[[], bool]) -> SampledToken | None:
        """The next token of the text; None if `stopped` interrupted the reading of the prompt."""
        if self._text is None:
            if not self._decoder.read(stopped, all_but=1):
                return None
            self._graph.lend(self)
            self._text = BorrowedText(self._graph, self._decoder, self._settings, self._sampled)
        self._sampled += 1
        return self._text.take()

    def release(self) -> None:
        """Give the graph decoder back. The decoder then has all tokens that were handed out."""
        text, self._text = self._text, None
        if text is None:
            return
        if text.tokens:
            text.rewind()
            self._decoder.move_to(self._graph.state(), text.tokens)
        self._graph.returned(self)


class BorrowedText:
    """A decoder's text while a graph decoder continues it, in bursts."""

    @torch.no_grad()
    def __init__(
        self, graph: GraphDecoder, decoder: Decoder, settings: SamplingSettings, sampled: int
    ) -> None:
        """The decoder has read all of its text but the last token."""
        self.tokens: list[int] = []
        """The tokens that were handed out."""
        self._graph, self._most = graph, settings.max_new_tokens - sampled
        sampler = graph.sampler
        device = sampler.seen.device
        graph.load(decoder.state or decoder.model.initial_state(1))
        graph.set_next(torch.tensor(decoder.unread, device=device))
        sampler.prepare(settings, sampled)
        sampler.seen[0].copy_(decoder.seen)
        room = AHEAD * LONGEST * sampler.record_length
        self._host = torch.empty(room, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._copies = [[torch.empty_like(tensor) for tensor in graph.changing()] for _ in range(AHEAD)]
        self._launched = 0
        self._bursts: deque[Burst] = deque()
        """The burst that is being handed out comes first."""
        self._ready: list[SampledToken] = []
        self._taken = 0

    def take(self) -> SampledToken:
        """The next token."""
        if self._taken == len(self._ready):
            self._next_burst()
        self._taken += 1
        sampled = self._ready[self._taken - 1]
        self.tokens.append(sampled.token)
        return sampled

    def _next_burst(self) -> None:
        if self._ready:
            self._bursts.popleft()
        while len(self._bursts) < AHEAD and self._most > 0:
            self._launch(min(self._most, LONGEST, 1 << self._launched))
        burst = self._bursts[0]
        if burst.arrived is not None:
            burst.arrived.synchronize()
        length = self._graph.sampler.record_length
        self._ready, self._taken = read_records(burst.records.numpy().reshape(burst.count, length)), 0

    @torch.no_grad()
    def _launch(self, count: int) -> None:
        """Have the device read and sample `count` tokens and send their records."""
        half, sampler = self._launched % AHEAD, self._graph.sampler
        before, start = self._copies[half], half * LONGEST
        for copy, tensor in zip(before, self._graph.changing()):
            copy.copy_(tensor)
        sampler.next_record.fill_(start)
        self._graph.read_and_sample(count)
        span = slice(start * sampler.record_length, (start + count) * sampler.record_length)
        records, arrived = self._host[span], None
        records.copy_(sampler.records[0, span], non_blocking=True)
        if records.is_pinned():  # otherwise it is there already
            arrived = torch.cuda.Event()
            arrived.record()
        self._bursts.append(Burst(count, before, records, arrived))
        self._most -= count
        self._launched += 1

    @torch.no_grad()
    def rewind(self) -> None:
        """Leave the graph decoder where it has read all tokens that were handed out, except the last."""
        if self._bursts and self._taken == self._bursts[0].count:
            self._bursts.popleft()
            self._ready, self._taken = [], 0
        if not self._bursts:
            return
        for tensor, copy in zip(self._graph.changing(), self._bursts[0].before):
            tensor.copy_(copy)
        # The token that the burst began with came back with the state; then those that it sampled.
        first = self._graph.next_tokens()
        tokens = torch.tensor([sampled.token for sampled in self._ready[: self._taken]]).to(first.device)
        for token in [first, *tokens.split(1)][: self._taken]:
            self._graph.read(token)
