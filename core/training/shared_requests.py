"""Requests to a run, received by rank 0 and carried out by all ranks at the same step."""

from __future__ import annotations

import math
from typing import Any

import torch

from core.runs import EventWriter
from core.runs.events import Event
from core.training.ranks import Ranks
from core.training.requests import Requests


class SharedRequests:
    """A trainer's view of `Requests`, the same on every rank. It changes only in `listen`.

    Every rank must call `listen` equally often.
    """

    def __init__(self, ranks: Ranks, heard: Requests | None = None) -> None:
        """`heard` is what rank 0 listens to."""
        self.stopping = False
        self.paused = False
        self.folder_gone = False
        self.wanted: list[tuple[str, dict[str, Any]]] = []
        self.event_seconds = heard.event_seconds if heard is not None else math.inf
        self._ranks = ranks
        self._heard = heard
        # Whether to stop, whether to pause, and how many other things are wanted.
        self._numbers = torch.zeros(3, dtype=torch.int64)

    def listen(self, step: int) -> None:
        """Take over what rank 0 has heard: usually one message of three numbers from host to host."""
        heard, wanted = self._heard, self._numbers.numpy()
        if heard is not None:
            heard.listen(step)
            wanted[:] = heard.stopping, heard.paused, len(heard.wanted)
        self._ranks.numbers_from_first(self._numbers)
        self.stopping, self.paused = bool(wanted[0]), bool(wanted[1])
        if wanted[2]:
            self.wanted += self._ranks.from_first(self._take)

    def _take(self) -> list[tuple[str, dict[str, Any]]]:
        assert self._heard is not None
        taken = self._heard.wanted[: int(self._numbers[2])]
        del self._heard.wanted[: len(taken)]
        return taken


class NoEvents(EventWriter):
    """The history writer of ranks that write nothing."""

    def __init__(self) -> None:
        """Open no file."""

    def write(self, event: Event) -> None:
        """Write nothing."""

    def state(self, state: str, step: int, detail: str = "", progress: float | None = None) -> None:
        """Write nothing."""

    def warning(self, message: str) -> None:
        """Write nothing: rank 0 sees the same and reports it."""
