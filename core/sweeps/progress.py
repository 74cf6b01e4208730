"""The state of every variant of a sweep, read from its run's own history."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from core.runs import EventReader, LatestEvents, Run, is_alive, status
from core.runs.events import EvaluationEvent
from core.sweeps.plan import Plan, Variant

MOST_RESTARTS = 3


@dataclass
class Progress:
    """The current state of one variant.

    `state` is waiting, training (whatever its trainer does), finished, pruned, stopped, failed or interrupted
    (it died or was interrupted, and continues when the sweep does). `curve` holds validation bits per byte by
    step.
    """

    variant: Variant
    run: Run
    state: str = "waiting"
    step: int = 0
    max_iters: int = 0
    message: str = ""
    curve: dict[int, float] = field(default_factory=dict)

    died: bool = False

    @property
    def best(self) -> float:
        """The lowest bits per byte so far; infinity before the first evaluation."""
        return min(self.curve.values(), default=math.inf)

    @property
    def done(self) -> bool:
        """True if there is nothing left to do for it."""
        return self.state in ("finished", "pruned", "stopped", "failed")

    def fruitless_restarts(self, plan: Plan) -> int:
        """How often it was restarted since it last made progress."""
        number, step = plan.restarts.get(self.variant.run, (0, -1))
        return number if self.step <= step else 0


class Curve(LatestEvents):
    """A run's latest events, and validation bits per byte by step."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: dict[int, float] = {}

    def take_back(self, step: int) -> None:
        """As in `LatestEvents`."""
        super().take_back(step)
        self.curve = {at: value for at, value in self.curve.items() if at <= step}

    def _take_eval(self, event: EvaluationEvent) -> None:
        super()._take_eval(event)
        if math.isfinite(event.bits_per_byte):
            self.curve[event.step] = event.bits_per_byte


class Watcher:
    """Follows the histories of a plan's variants; each look reads only what is new."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.variants = [Progress(variant, plan.run(variant)) for variant in plan.variants]
        self._readers = [EventReader(one.run.events_path) for one in self.variants]
        self._histories = [Curve() for _ in self.variants]

    def look(self) -> list[Progress]:
        """The current state of every variant. Never raises because of a run folder's content."""
        for index, one in enumerate(self.variants):
            if one.done and one.state != "failed":
                continue
            self._look(index, one)
        return self.variants

    def _look(self, index: int, one: Progress) -> None:
        # Asked before reading the history, so that a trainer that ends in between has written everything.
        alive = is_alive(one.run)
        reader, history = self._readers[index], self._histories[index]
        generation = reader.generation
        events = reader.poll()
        if reader.generation != generation:
            history = self._histories[index] = Curve()
        history.feed(events)
        one.max_iters, one.step, one.curve = history.max_iters, history.step, history.curve
        if history.end is not None:
            one.message = history.end.message
        reason = history.end.reason if history.end else "died" if history.run else ""
        one.state = self._state(one, reason, alive)

    def _state(self, one: Progress, reason: str, alive: bool) -> str:
        one.died = False
        if alive:
            return "training"
        if reason == "finished":
            return reason
        if one.variant.run in self.plan.pruned:
            return "pruned"
        if not one.run.exists:
            one.message = "its folder is gone"
            return "failed"
        if reason in ("stopped", "failed"):
            return reason
        if reason == "":
            return self._never_began(one)
        one.died = reason == "died"
        if one.died and one.fruitless_restarts(self.plan) >= MOST_RESTARTS:
            one.message = f"died {MOST_RESTARTS + 1} times at the same step: {status(one.run).message}"
            return "failed"
        return "interrupted"

    def _never_began(self, one: Progress) -> str:
        """Without a history: not started yet, or its trainer couldn't even begin one."""
        if not one.run.log_path.exists():
            return "waiting"
        current = status(one.run)
        one.message = current.message
        return "failed" if current.state == "failed" else "waiting"
