"""Writing ahead: the device draws a burst of tokens while the host still shows the ones before.

The next token does not need the host, so tokens are read and drawn in bursts that grow. A burst begins by
keeping the state. Where a text ends inside a burst, that state comes back and only the tokens that were
handed out are read again, so that the text stands where it would if they had come one by one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from core.generation.cuda.graph_decoder import Reader
from core.generation.cuda.sampler import Drawn, Options, understood

LONGEST = 16
"""Tokens of a burst: a few milliseconds of one, so that they still come smoothly and a stop is quick."""
AHEAD = 2
"""Bursts that the device is given at a time."""


@dataclass
class Burst:
    """Tokens that the device reads and draws in one go."""

    count: int
    kept: list[Tensor]
    """What it started from."""
    records: Tensor
    """Where its records come to, on the host."""
    arrived: torch.cuda.Event | None


class Writer:
    """Draws the tokens of one text with a reader that has read all of it but its last token."""

    @torch.no_grad()
    def __init__(
        self, reader: Reader, last: int, options: Options, seen: Tensor, *, seed: int, drawn: int, most: int
    ) -> None:
        """`last` is the text's last token, `seen` (V,) bool has those that it contains.

        `drawn` tokens were drawn with this seed before; no more than `most` are to come.
        """
        self._reader, self._most = reader, most
        drawer = reader.drawer
        drawer.prepare(options, seed, drawn)
        drawer.seen[0].copy_(seen)
        device = drawer.seen.device
        reader.give(torch.tensor([last], device=device))
        room = AHEAD * LONGEST * drawer.length
        self._host = torch.empty(room, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._places = [[torch.empty_like(tensor) for tensor in reader.kept()] for _ in range(AHEAD)]
        self._launched = 0
        self._bursts: deque[Burst] = deque()
        """The first is being handed out."""
        self._ready: list[Drawn] = []
        self._taken = 0

    def take(self) -> Drawn:
        """The next token."""
        if self._taken == len(self._ready):
            self._next_burst()
        self._taken += 1
        return self._ready[self._taken - 1]

    def _next_burst(self) -> None:
        if self._ready:
            self._bursts.popleft()
        while len(self._bursts) < AHEAD and self._most > 0:
            self._launch(min(self._most, LONGEST, 1 << self._launched))
        burst = self._bursts[0]
        if burst.arrived is not None:
            burst.arrived.synchronize()
        length = self._reader.drawer.length
        self._ready, self._taken = understood(burst.records.numpy().reshape(burst.count, length)), 0

    @torch.no_grad()
    def _launch(self, count: int) -> None:
        """Have the device read and draw `count` tokens, and send their records."""
        place, drawer = self._launched % AHEAD, self._reader.drawer
        kept, start = self._places[place], place * LONGEST
        for copy, tensor in zip(kept, self._reader.kept()):
            copy.copy_(tensor)
        drawer.slots.fill_(start)
        self._reader.read_and_draw(count)
        span = slice(start * drawer.length, (start + count) * drawer.length)
        records, arrived = self._host[span], None
        records.copy_(drawer.records[0, span], non_blocking=True)
        if records.is_pinned():  # else it is there already
            arrived = torch.cuda.Event()
            arrived.record()
        self._bursts.append(Burst(count, kept, records, arrived))
        self._most -= count
        self._launched += 1

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the reader where all tokens that were handed out have been read, except the last one."""
        if self._bursts and self._taken == self._bursts[0].count:
            self._bursts.popleft()
            self._ready, self._taken = [], 0
        if not self._bursts:
            return
        for tensor, copy in zip(self._reader.kept(), self._bursts[0].kept):
            tensor.copy_(copy)
        if not self._taken:
            return
        # The token that the burst began with came back with the state; then those that it drew.
        first = self._reader.next_token()
        tokens = torch.tensor([drawn.token for drawn in self._ready[: self._taken]]).to(first.device)
        self._reader.read(first)
        for i in range(len(tokens) - 1):
            self._reader.read(tokens[i : i + 1])
        self._reader.give(tokens[-1:])
