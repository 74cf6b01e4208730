"""How long a run will take: shown before its first step, corrected by its measured speed, and remembered."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from core.config.run_time import KNOWN, Costs, Duration, duration, evaluation_tokens
from core.config.schema import RunConfig
from core.config.speed import remember
from core.runs import EventWriter
from core.runs.events import PlanEvent
from core.system.hardware import peak_process_memory
from core.training.build import Parts
from core.training.run_clock import EVALUATION, FIRST_STEP, PROCESS_BEGAN, SAMPLE, SAVE, STEP, RunClock
from core.training.schedule import COOL_DOWN, Schedule

MEASURED_STEPS = 20
MEASURED_SECONDS = 1.0
WORTH_REMEMBERING = 3.0
"""Seconds of steps after which a measured speed is worth keeping."""
KEPT_FREE = 0.02
"""The share of a time budget that is kept free, in case something takes longer than before."""


class Forecast:
    """Compares the plan of a run with its clock."""

    def __init__(self, parts: Parts, config: RunConfig, writer: EventWriter, clock: RunClock) -> None:
        self._parts = parts
        self._config = config
        self._writer = writer
        self._clock = clock
        self._sides = (len(parts.corpus.train), len(parts.corpus.validation))
        self._vocab_size = parts.tokenizer.vocab_size
        self._expected, self._nearest = parts.speeds.costs(config, self._vocab_size)
        self._said = parts.step > 0
        self._before = time.monotonic() - PROCESS_BEGAN
        """Seconds from the trainer's start to here, where it can take its first step."""

    def say_plan(self, step: int) -> None:
        """Show the plan before the first step."""
        if step == 0:
            length = duration(self._config, self._expected, self._sides, self._nearest, before=self._before)
            self._say(0, length, self._config.training.max_iters, measured=False)

    def begun(self) -> None:
        """Note the first step, whose duration may include compiling and says nothing about later ones."""
        self._clock.lap(FIRST_STEP)

    def say_measured(self, step: int, last_step: int) -> None:
        """Show the plan again, once, with the speed of the first steps."""
        if self._said or self._clock.steps < MEASURED_STEPS:
            return
        if self._clock.each(STEP) * self._clock.steps < MEASURED_SECONDS:
            return
        self._said = True
        config = self._config
        length = duration(config, self._costs(), self._sides, KNOWN, before=self._before)
        self._say(step, length, last_step, measured=True)

    def _costs(self) -> Costs:
        """Measured costs, and expected ones for what hasn't been measured."""
        clocked = dataclasses.asdict(self._clock.costs(self._config, self._sides))
        measured = {name: seconds for name, seconds in clocked.items() if seconds}
        expected = dataclasses.asdict(self._expected)
        ratio = measured.get("step", 0.0) / self._expected.step if self._expected.step else 1.0
        if ratio:  # a slower machine also evaluates more slowly
            for key in ("evaluation_token", "sample_token"):
                expected[key] *= ratio
        return Costs(**{**expected, **measured})

    def _say(self, step: int, length: Duration, steps: int, *, measured: bool) -> None:
        planned = self._parts.planned
        low, high = planned.expected or (None, None)
        self._writer.write(
            PlanEvent(
                step=step,
                tokens=self._sides[0],
                parameters=planned.parameters,
                steps=steps,
                passes=round(planned.passes, 2),
                seconds=round(length.seconds, 1),
                seconds_low=round(length.low, 1),
                seconds_high=round(length.high, 1),
                measured=measured,
                expected_low=low,
                expected_high=high,
                hint=planned.hint,
            )
        )

    @property
    def affordable_steps(self) -> int:
        """How many more steps fit in the time budget, with evaluations on the way and at the end."""
        training, clock = self._config.training, self._clock
        expected, read = self._expected, evaluation_tokens(self._config, self._sides)
        look = clock.each(EVALUATION) or expected.evaluation_token * read
        write = clock.each(SAMPLE) or expected.sample_token * training.sample_tokens
        at_end = look + write * bool(training.sample_tokens) + clock.each(SAVE) + expected.save
        left = training.time_budget * 60 * (1 - KEPT_FREE) - clock.spent - at_end
        step = (clock.each(STEP) or expected.step) + at_end / training.eval_interval
        return max(0, math.floor(left / step)) if step > 0 else 0

    def hurries(self, schedule: Schedule, step: int) -> bool:
        """Start the cool-down while there is still time for it, or shorten it if there no longer is.

        Returns whether this changed the last step.
        """
        if not self._config.training.time_budget or step >= schedule.last_step:
            return False
        left = self._parts.ranks.from_first(lambda: self.affordable_steps)
        cooling = schedule.phase(step + 1) == COOL_DOWN
        if left >= (schedule.last_step - step if cooling else schedule.wanted_cool_down(step)):
            return False
        before = schedule.last_step
        schedule.finish(step, max(1, left))
        return schedule.last_step < before

    def remember(self) -> None:
        """Remember the measurements for estimates of later runs."""
        if self._parts.ranks.several or self._clock.each(STEP) * self._clock.steps < WORTH_REMEMBERING:
            return
        corpus = self._parts.corpus
        costs = dataclasses.replace(
            self._clock.costs(self._config, self._sides),
            # Where only a part of the text was new, neither what it took nor the rest is known.
            start=self._before - self._preparing if self._preparing or not corpus.encoded_files else 0.0,
            prepare_byte=self._preparing / corpus.new_bytes if self._preparing else 0.0,
            memory=self._peak_memory(),
        )
        remember(self._config, self._vocab_size, costs)

    @property
    def _preparing(self) -> float:
        """Seconds that went into a new text; 0 where some or all of it was known."""
        corpus = self._parts.corpus
        return corpus.prepare_seconds if corpus.new_bytes else 0.0

    def _peak_memory(self) -> float:
        device = self._parts.device
        if device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(device))
        return float(peak_process_memory())
