"""The learning rate of each step: warm-up, then constant until a cool-down ends the run, or a cosine.

A cosine must know its last step from the first one. A cool-down can begin at any time: when the planned steps
are nearly done, when validation no longer improves, or on request (`mamba-tui finish`). When it began is
part of a checkpoint.

         learning_rate  _________________________
                      /                          \\
                    /                              \\    min_learning_rate
        warm-up: warmup_iters       constant        cool-down: linear
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.config.schema import TrainingConfig

COOLDOWN_SHARE = 0.25
"""Length of a cool-down as a share of all planned steps, if `cooldown_iters` is 0."""
SHORTEST_COOLDOWN = 50
WARM_UP, CONSTANT, COOL_DOWN, COSINE = "warm-up", "constant", "cool-down", "cosine"


@dataclass(frozen=True)
class CoolDown:
    """A cool-down that follows step `begin` and takes `steps` steps."""

    begin: int
    steps: int
    rate: float | None = None
    """The learning rate that it starts from; None for that of the phase before."""

    @property
    def end(self) -> int:
        """The last step."""
        return self.begin + self.steps


class Schedule:
    """The learning rate as a function of the step, and which step is the last.

    Attributes:
        early: the cool-down that began before the planned one; None if there is none.
        warm_up_again: the step after which a run that had cooled down continued; None if none did.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self.training = training
        self.early: CoolDown | None = None
        self.warm_up_again: int | None = None

    @property
    def last_step(self) -> int:
        """The step at which training ends."""
        return self.training.max_iters if self.early is None else self.early.end

    @property
    def cool_down(self) -> CoolDown | None:
        """The cool-down that is planned or has begun; None for a cosine that nothing cut short."""
        if self.early is not None:
            return self.early
        if self.training.schedule != "constant":
            return None
        total = self.training.max_iters
        steps = min(self.training.cooldown_iters or round(COOLDOWN_SHARE * total), total)
        return CoolDown(total - steps, steps)

    def wanted_cool_down(self, step: int) -> int:
        """Length in steps of a cool-down after `step` that isn't short of time."""
        return self.training.cooldown_iters or max(SHORTEST_COOLDOWN, round(COOLDOWN_SHARE * step))

    def finish(self, step: int, at_most: int | None = None) -> CoolDown:
        """Begin to cool down after `step`, unless that has begun; never ends later than planned.

        With `at_most` it ends within that many steps; a cool-down that has begun is shortened.
        """
        current = self.cool_down
        if current is not None and step >= current.begin:
            if at_most is None or current.end - step <= at_most or step == current.begin == 0:
                return current
            self.early = CoolDown(step, max(1, at_most), self.rate(step))
            return self.early
        # A cool-down as long as what was learned needs: a tenth of the steps so far would leave noise.
        wanted = self.wanted_cool_down(step)
        if at_most is not None:
            wanted = min(wanted, at_most)
        self.early = CoolDown(step, max(1, min(wanted, self.training.max_iters - step)))
        return self.early

    def end(self, step: int) -> None:
        """End with `step`, in the middle of a cool-down."""
        current = self.cool_down
        assert current is not None
        assert current.begin < step
        self.early = CoolDown(current.begin, step - current.begin, current.rate)

    def phase(self, step: int) -> str:
        """The phase of the schedule at `step`."""
        cool_down = self.cool_down
        if cool_down is not None and step > cool_down.begin:
            return COOL_DOWN
        if step < self.training.warmup_iters:
            return WARM_UP
        return CONSTANT if self.training.schedule == "constant" else COSINE

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step `step` (the first is 1)."""
        cool_down = self.cool_down
        if cool_down is None or step < cool_down.begin + (cool_down.rate is None):
            return self._before(step) * self._warmth(step)
        high = self._before(cool_down.begin) if cool_down.begin else self.training.learning_rate
        high = cool_down.rate if cool_down.rate is not None else high
        low = min(self.training.min_learning_rate, high)
        return low + (high - low) * max(0.0, 1.0 - (step - cool_down.begin) / max(1, cool_down.steps))

    def _warmth(self, step: int) -> float:
        """The progress of a second warm-up, as a factor of the learning rate."""
        if self.warm_up_again is None or self.training.warmup_iters == 0:
            return 1.0
        return min(1.0, max(0, step - self.warm_up_again) / self.training.warmup_iters)

    def go_on(self, step: int, rate_before: float) -> str:
        """Continue after `step`, whose learning rate was `rate_before`, with changed settings.

        A rate that had fallen returns in a warm-up instead of at once. Returns a message about it, or "".
        """
        self.early = None
        after = self.rate(step + 1)
        if step == 0 or after <= 2 * rate_before:
            return ""
        self.warm_up_again = step
        return (
            f"the learning rate of step {step:,} was {rate_before:.2g}; it warms up again to {after:.2g} "
            f"within {self.training.warmup_iters:,} steps"
        )

    def _before(self, step: int) -> float:
        """The rate if no cool-down has begun."""
        training = self.training
        if step < training.warmup_iters:
            return training.learning_rate * step / training.warmup_iters
        if training.schedule == "constant":
            return training.learning_rate
        share = min(1.0, (step - training.warmup_iters) / max(1, training.max_iters - training.warmup_iters))
        high, low = training.learning_rate, training.min_learning_rate
        return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * share))

    def state_dict(self) -> dict[str, float]:
        """The decisions made during training that a checkpoint stores."""
        kept: dict[str, float] = {}
        if self.early is not None:
            kept = {"begin": self.early.begin, "steps": self.early.steps}
            if self.early.rate is not None:
                kept["rate"] = self.early.rate
        return kept if self.warm_up_again is None else kept | {"warm_up_again": self.warm_up_again}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a `state_dict`."""
        self.early = None
        if "begin" in state:
            self.early = CoolDown(int(state["begin"]), int(state["steps"]), state.get("rate"))
        self.warm_up_again = int(state["warm_up_again"]) if "warm_up_again" in state else None
