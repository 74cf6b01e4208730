"""How a run is learning, in words: whether it still improves, since when it doesn't, how it is ending."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from core.runs.event_fields import COUNT, NUMBER, number_out
from core.runs.events import EvaluationEvent, ScheduleEvent

LEAST_GAIN = 5e-4
"""By which share of the validation loss a new best must be lower to count as an improvement."""
CLEARLY_WORSE = 5e-3
"""By which share of the best validation loss a later one must be higher to count as rising."""
ROWS_KEPT = 64
COOL_DOWN = "cool-down"


class EvaluationLosses(NamedTuple):
    """The losses of one evaluation, in nats per token."""

    step: int
    train: float
    validation: float


class LearningTrace:
    """The best evaluation of a run, and the number of evaluations since then.

    Keeps the latest evaluations, so that they can be undone if a trainer goes back.
    """

    def __init__(self, rows: Iterable[EvaluationLosses] = ()) -> None:
        self.best: EvaluationLosses | None = None
        self.newest: EvaluationLosses | None = None
        self.since = 0
        self.count = 0
        self._rows: list[EvaluationLosses] = []
        for row in rows:
            self._take(row)

    def take(self, event: EvaluationEvent) -> None:
        """Add an evaluation."""
        self._take(EvaluationLosses(event.step, event.train_loss, event.validation_loss))

    def _take(self, row: EvaluationLosses) -> None:
        if self.newest is not None and row.step <= self.newest.step:
            self.take_back(row.step - 1)
        self.count += 1
        self.newest = row
        self._rows.append(row)
        best = self.best.validation if self.best else math.inf
        if row.validation < best * (1 - LEAST_GAIN) or self.best is None:
            self.best, self.since = row, 0
        else:
            self.since += 1
        if len(self._rows) > ROWS_KEPT:  # the best stays, however long ago it was
            del self._rows[1 if self._rows[0] == self.best else 0]

    def take_back(self, step: int) -> None:
        """Forget evaluations after `step`."""
        kept = [row for row in self._rows if row.step <= step]
        if len(kept) < len(self._rows):
            LearningTrace.__init__(self, kept)

    def values(self) -> list[list[object]]:
        """The values that a cache stores."""
        return [[row.step, number_out(row.train), number_out(row.validation)] for row in self._rows]

    @classmethod
    def from_values(cls, values: list[list[object]]) -> LearningTrace:
        """The state from stored values. Raises ValueError or TypeError for anything else."""
        return cls(
            EvaluationLosses(COUNT.read(step), NUMBER.read(train), NUMBER.read(validation))
            for step, train, validation in values[:ROWS_KEPT]
        )


def learning_words(trace: LearningTrace, schedule: ScheduleEvent | None, step: int) -> str:
    """How a run at `step` is learning, in words; "" if there is nothing to say yet.

    `no better since step 600`, `learning the text by heart: training 0.6, validation 2.9, rising`.
    """
    if schedule is not None and schedule.phase == COOL_DOWN and step >= schedule.step:
        steps = schedule.last_step - schedule.step
        return f"cooling down: {min(step - schedule.step, steps):,} of {steps:,} steps"
    best, newest = trace.best, trace.newest
    if best is None or newest is None or trace.count < 2:
        return ""
    if not math.isfinite(newest.validation):
        return "diverging: the validation loss is not a number"
    if trace.since == 0:
        return "still improving"
    if newest.validation > best.validation * (1 + CLEARLY_WORSE):
        if newest.train < min(best.train, newest.validation):
            losses = f"training {_short(newest.train)}, validation {_short(newest.validation)}"
            return f"learning the text by heart: {losses}, rising"
        return f"getting worse: validation {_short(newest.validation)}, best {_at(best)}"
    return f"no better since step {best.step:,}"


def _at(best: EvaluationLosses) -> str:
    return f"{_short(best.validation)} at step {best.step:,}"


def _short(loss: float) -> str:
    return f"{loss:.2f}" if math.isfinite(loss) else "not a number"
