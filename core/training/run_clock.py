"""How a run's time is spent, and when it has to begin to end."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.config.run_time import Costs, evaluation_tokens
from core.config.schema import RunConfig

PROCESS_BEGAN = time.monotonic()
"""About when this process started: modules are imported first of all."""
STEP, EVALUATION, SAMPLE, SAVE = "step", "evaluation", "sample", "save"
FIRST_STEP, END, OTHER = "first step", "end", "other"


class RunClock:
    """Seconds that a run has taken, by what they were spent on; pauses don't count.

    Attributes:
        before: seconds of earlier trainers, from the checkpoint.
    """

    def __init__(self, before: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.before = before
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._lap = clock()
        self._steps = 0

    def stepped(self) -> None:
        """Count a step."""
        self._steps += 1

    def lap(self, what: str, count: int = 1) -> None:
        """Add the time since the last lap to `what`; for STEP, to the steps since then."""
        now = self._clock()
        seconds, self._lap = now - self._lap, now
        if what == STEP:
            count, self._steps = self._steps, 0
        self._seconds[what] = self._seconds.get(what, 0.0) + seconds
        self._counts[what] = self._counts.get(what, 0) + count

    def skip(self) -> None:
        """Skip the time since the last lap, because the run was paused."""
        self._lap = self._clock()

    @property
    def spent(self) -> float:
        """Seconds of the whole run so far."""
        return self.before + sum(self._seconds.values()) + self._clock() - self._lap

    @property
    def steps(self) -> int:
        """Steps that this trainer has measured."""
        return self._counts.get(STEP, 0) + self._steps

    def each(self, what: str) -> float:
        """Mean seconds of each; 0 if none was measured."""
        if what == STEP:
            running = self._clock() - self._lap if self._steps else 0.0
            return (self._seconds.get(STEP, 0.0) + running) / self.steps if self.steps else 0.0
        count = self._counts.get(what, 0)
        return self._seconds.get(what, 0.0) / count if count else 0.0

    def costs(self, config: RunConfig, text_tokens: tuple[int, int]) -> Costs:
        """The cost of one of each, as far as measured."""
        read = evaluation_tokens(config, text_tokens)
        return Costs(
            step=self.each(STEP),
            evaluation_token=self.each(EVALUATION) / read if read else 0.0,
            sample_token=self.each(SAMPLE) / max(1, config.training.sample_tokens),
            save=self.each(SAVE),
            first_step=self.each(FIRST_STEP),
            end=self.each(END),
        )
