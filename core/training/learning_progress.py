"""Whether a run still learns: its best validation so far, and how long ago that was."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_GAIN = 5e-4
"""Of the validation loss: what a better one must be lower by to count as improvement."""


@dataclass
class LearningProgress:
    """The best validation loss of a run, at which step, and the evaluations since without a better one."""

    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since: int = 0

    def take(self, step: int, validation_loss: float) -> None:
        """Take in an evaluation. A loss that is not finite is no improvement."""
        if validation_loss < self.best_loss * (1 - LEAST_GAIN):
            self.best_loss, self.best_step, self.evaluations_since = validation_loss, step, 0
        else:
            self.evaluations_since += 1

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations (0 = endless) brought nothing better."""
        return 0 < patience <= self.evaluations_since

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint keeps."""
        return {"loss": self.best_loss, "step": self.best_step, "since": self.evaluations_since}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from a `state_dict`."""
        self.best_loss, self.best_step = float(state["loss"]), int(state["step"])
        self.evaluations_since = int(state["since"])
