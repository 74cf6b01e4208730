"""The latest events of a run that still count: enough for a line in a list, or a display without curves."""

from __future__ import annotations

from collections.abc import Iterable

from core.runs.events import (
    CheckpointEvent,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    FilesEvent,
    ReadingEvent,
    RunEvent,
    SampleEvent,
    ScheduleEvent,
    StateEvent,
    StepEvent,
)
from core.runs.learning import COOL_DOWN, LearningTrace, learning_words


class LatestEvents:
    """Feed it every event in the order of the file. Fields that no longer count are None.

    Only this class implements rule 4 of docs/events.md: a `run` event undoes everything that its trainer
    didn't have, because it happens again. `core.runs.history.RunHistory` adds curves to it.
    """

    def __init__(self) -> None:
        self.run: RunEvent | None = None
        self.state: StateEvent | None = None
        self.schedule: ScheduleEvent | None = None
        self.reading: ReadingEvent | None = None
        self.last_step: StepEvent | None = None
        self.last_evaluation: EvaluationEvent | None = None
        self.files: FilesEvent | None = None
        """The losses of files at the best evaluation."""
        self.last_sample: SampleEvent | None = None
        self.last_checkpoint: CheckpointEvent | None = None
        self.error: ErrorEvent | None = None
        self.end: EndEvent | None = None
        self.newest: Event | None = None
        self.learning = LearningTrace()
        self.version = 0

    def feed(self, events: Iterable[Event]) -> None:
        """Add new events. `version` changes with each."""
        for event in events:
            self.version += 1
            self.newest = event
            take = getattr(self, f"_take_{event.kind}", None)
            if take is not None:
                take(event)

    def take_back(self, step: int) -> None:
        """Forget everything recorded after `step`, and how the previous trainer ended."""
        for name in (
            *("schedule", "reading", "last_step", "last_evaluation", "files"),
            *("last_sample", "last_checkpoint"),
        ):
            event = getattr(self, name)
            if event is not None and event.step > step:
                setattr(self, name, None)
        self.learning.take_back(step)
        self.state = self.error = self.end = None

    def _take_run(self, event: RunEvent) -> None:
        self.take_back(event.first_step)
        self.schedule = None  # each trainer says anew how its run ends
        self.run = event

    def _take_state(self, event: StateEvent) -> None:
        self.state = event

    def _take_schedule(self, event: ScheduleEvent) -> None:
        self.schedule = event

    def _take_reading(self, event: ReadingEvent) -> None:
        self.reading = event

    def _take_step(self, event: StepEvent) -> None:
        self.last_step = event

    def _take_eval(self, event: EvaluationEvent) -> None:
        self.last_evaluation = event
        self.learning.take(event)

    def _take_files(self, event: FilesEvent) -> None:
        best = self.learning.best
        if self.files is None or best is None or best.step == event.step:
            self.files = event

    def _take_sample(self, event: SampleEvent) -> None:
        self.last_sample = event

    def _take_checkpoint(self, event: CheckpointEvent) -> None:
        self.last_checkpoint = event

    def _take_error(self, event: ErrorEvent) -> None:
        self.error = event

    def _take_end(self, event: EndEvent) -> None:
        self.end = event

    @property
    def step(self) -> int:
        """How far the run has come."""
        events = (self.last_step, self.state, self.last_evaluation, self.end)
        steps = [event.step for event in events if event is not None]
        return max(steps, default=0) or (self.run.first_step if self.run else 0)

    @property
    def max_iters(self) -> int:
        """How many steps the run is to take; 0 if unknown."""
        if self.schedule is not None:
            return self.schedule.last_step
        return self.run.max_iters if self.run else 0

    @property
    def cooling_down(self) -> bool:
        """Whether the learning rate is on its way to the run's end."""
        return self.schedule is not None and self.schedule.phase == COOL_DOWN

    @property
    def learning_words(self) -> str:
        """How the run is learning, in words; "" where there is nothing to say yet."""
        return learning_words(self.learning, self.schedule, self.step)

    @property
    def progress(self) -> float | None:
        """The share of steps done."""
        return min(1.0, self.step / self.max_iters) if self.max_iters else None
