"""A run's events folded into what a line of a list shows.

Nearly all of a hundred thousand events are steps, and of consecutive steps only the last counts: the others
aren't even parsed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from core.runs.event_fields import COUNT, NUMBER, number_out
from core.runs.event_file import parse
from core.runs.events import (
    KINDS,
    EvaluationEvent,
    Event,
    RunEvent,
    SampleEvent,
    WarningEvent,
    decode,
    encode,
)
from core.runs.latest import LatestEvents
from core.runs.learning import LearningTrace

_STEP = b'{"kind":"step"'
_MOST_RECORDS = 2000
_KEPT = (
    *("run", "state", "schedule", "last_step", "last_evaluation", "last_checkpoint", "error", "end"),
    "newest",
)

Record = tuple[int, float, float]


class RunFold(LatestEvents):
    """The latest events of a run, its best evaluation, and how long it was trained.

    `records` are the evaluations that were better than all before them, as (step, validation loss in nats per
    token, bits per byte): after a trainer went back, the last remaining one is the best.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self._earlier_seconds = 0.0
        self._since = 0.0

    def feed(self, events: Iterable[Event]) -> None:
        """As `LatestEvents.feed`."""
        for event in events:
            if isinstance(event, RunEvent):
                self._begin(event)
            super().feed((event,))

    def feed_lines(self, lines: list[bytes]) -> None:
        """The same for lines of the file; of consecutive steps, only the last is parsed."""
        begin = 0
        marks = [number for number, line in enumerate(lines) if not line.startswith(_STEP)]
        for number in (*marks, len(lines)):
            for step in range(number - 1, begin - 1, -1):
                if events := parse([lines[step]])[0]:
                    self.feed(events)
                    break
            if number < len(lines):
                self.feed(parse([lines[number]])[0])
            begin = number + 1

    def _begin(self, event: RunEvent) -> None:
        before = self.run
        # A trainer reports itself twice: when it starts, and when its model is built.
        if before is not None and (before.pid, before.started) == (event.pid, event.started):
            return
        self._earlier_seconds = self.seconds
        self._since = event.time

    def take_back(self, step: int) -> None:
        """As in `LatestEvents`."""
        super().take_back(step)
        self.records = [record for record in self.records if record[0] <= step]

    def _take_eval(self, event: EvaluationEvent) -> None:
        super()._take_eval(event)
        best = self.records[-1][2] if self.records else math.inf
        if event.bits_per_byte < best:
            self.records.append((event.step, event.validation_loss, event.bits_per_byte))
            if len(self.records) > _MOST_RECORDS:
                del self.records[: _MOST_RECORDS // 2 : 2]

    def _take_sample(self, event: SampleEvent) -> None:
        """A list shows no samples."""

    @property
    def seconds(self) -> float:
        """How long trainers were working, without the time in between."""
        now = self.newest.time - self._since if self.newest is not None and self._since else 0.0
        return self._earlier_seconds + max(0.0, now)

    # ------------------------------------------------------- kept on disk

    def values(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        events = {name: _kept(event) for name in _KEPT if (event := getattr(self, name)) is not None}
        return {
            "events": events,
            "records": [[step, number_out(loss), number_out(bits)] for step, loss, bits in self.records],
            "learning": self.learning.values(),
            "earlier_seconds": self._earlier_seconds,
            "since": self._since,
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RunFold:
        """The fold that `values` described. Raises ValueError, KeyError or TypeError for anything else."""
        fold = cls()
        for name in _KEPT:
            if name in values["events"]:
                event = decode(values["events"][name])
                if event is None or (name != "newest" and not isinstance(event, _CLASS[name])):
                    raise ValueError(f"not an event: {name}")
                setattr(fold, name, event)
        if fold.newest == fold.run:
            fold.newest = fold.run
        for step, loss, bits in values["records"][:_MOST_RECORDS]:
            fold.records.append((COUNT.read(step), NUMBER.read(loss), NUMBER.read(bits)))
        fold.learning = LearningTrace.from_values(values["learning"])
        fold._earlier_seconds = _seconds(values["earlier_seconds"])
        fold._since = _seconds(values["since"])
        return fold


_CLASS: dict[str, type[Event]] = {
    "run": RunEvent,
    "state": KINDS["state"],
    "schedule": KINDS["schedule"],
    "last_step": KINDS["step"],
    "last_evaluation": EvaluationEvent,
    "last_checkpoint": KINDS["checkpoint"],
    "error": KINDS["error"],
    "end": KINDS["end"],
}


def _kept(event: Event) -> dict[str, Any]:
    """An event without the parts that a list doesn't show."""
    if isinstance(event, RunEvent):
        event = dataclasses.replace(event, config={}, versions={}, changes={})
    elif event.kind == "error":
        event = dataclasses.replace(event, traceback=None)  # type: ignore[call-arg]
    elif event.kind not in KINDS or isinstance(event, SampleEvent):
        event = WarningEvent(time=event.time, message="")
    values: dict[str, Any] = json.loads(encode(event, event.time))
    return values


def _seconds(value: object) -> float:
    number = NUMBER.read(value)
    if not 0 <= number < 1 << 40:
        raise ValueError("not a number of seconds")
    return number
