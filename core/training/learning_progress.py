"""Whether a run still improves: its best validation loss so far, and how long ago that was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from core.runs.learning import LEAST_GAIN


class Loss(Protocol):
    """What is asked of an evaluation's loss."""

    @property
    def loss(self) -> float:
        """Mean nats per token."""

    @property
    def standard_error(self) -> float:
        """Of that mean."""

    @property
    def tokens(self) -> int:
        """How many were predicted."""


RISEN = 1e-3
"""Of the validation loss: what it may rise by while the learning rate cools down."""


@dataclass
class LearningProgress:
    """A run's best validation loss, its step, and the number of evaluations since then."""

    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since: int = 0
    doubted: bool = False
    """Whether the user has been told that evaluations read too little."""
    best_cooling: float = math.inf
    """The best validation loss since the learning rate has begun to cool down."""

    def take(self, step: int, validation_loss: float, *, cooling: bool = False) -> None:
        """Take in an evaluation. A loss that is not finite is no improvement."""
        self.best_cooling = min(self.best_cooling, validation_loss) if cooling else math.inf
        if validation_loss < self.best_loss * (1 - LEAST_GAIN):
            self.best_loss, self.best_step, self.evaluations_since = validation_loss, step, 0
        else:
            self.evaluations_since += 1

    def doubt(self, validation: Loss) -> str:
        """Why a better evaluation, not taken in yet, may be no better at all; "" if it is, and once a run."""
        gain = self.best_loss - validation.loss
        if self.doubted or not 0 < gain < validation.standard_error or math.isinf(gain):
            return ""
        self.doubted = True
        return (
            f"validation improved by {gain:.4f}, less than the evaluation's standard error of "
            f"{validation.standard_error:.4f}, from {validation.tokens:,} tokens"
        )

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations (0 = no limit) brought no improvement."""
        return 0 < patience <= self.evaluations_since

    def rises_cooling(self, validation_loss: float) -> bool:
        """Whether this loss is above what the cool-down has reached: from here on it learns by heart."""
        return validation_loss > self.best_cooling * (1 + RISEN)

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint keeps."""
        kept = {"loss": self.best_loss, "step": self.best_step, "since": self.evaluations_since}
        if not math.isinf(self.best_cooling):
            kept["cooling"] = self.best_cooling
        return kept | {"doubted": 1} if self.doubted else kept

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from a `state_dict`."""
        self.best_loss, self.best_step = float(state["loss"]), int(state["step"])
        self.evaluations_since = int(state["since"])
        self.doubted = bool(state.get("doubted"))
        self.best_cooling = float(state.get("cooling", math.inf))
