"""How long a whole run takes, from its command to its end, from the costs of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.config.schema import RunConfig

KNOWN, SIMILAR = 0.15, 1.0
"""Distances within which a measurement is of the same shape, or of a similar one."""
RANGES = (1.2, 1.5, 3.0)
"""Factors of uncertainty: for a known shape, a similar one, and a machine that has measured nothing
similar."""


@dataclass(frozen=True)
class Costs:
    """Seconds per occurrence of each thing; 0 if it wasn't measured."""

    step: float = 0.0
    """An optimizer step."""
    evaluation_token: float = 0.0
    """A token read by an evaluation."""
    sample_token: float = 0.0
    """A token of a text sample."""
    save: float = 0.0
    """How long a checkpoint holds up training."""
    start: float = 0.0
    """From the start of the trainer to the first step, without preparing text."""
    first_step: float = 0.0
    """The first step, including compiling and recording."""
    prepare_byte: float = 0.0
    """A byte of text that is read, learned from and encoded for the first time."""
    end: float = 0.0
    """From the start of the last save to the trainer's end: what remains to be written."""
    memory: float = 0.0
    """Peak bytes during training, including the framework's own."""


@dataclass(frozen=True)
class Duration:
    """How long something takes: the best guess, and a lower and upper limit."""

    seconds: float
    low: float
    high: float
    tokens_per_second: float
    memory: float
    measured: bool
    """Whether this machine has measured this shape or a similar one."""
    parts: Mapping[str, float]
    """The seconds by what they are spent on."""

    @property
    def budgeted(self) -> float:
        """The seconds that count toward a time budget: not those before the first step, and not the end."""
        return self.seconds - sum(self.parts[name] for name in (PREPARE, START, END))


PREPARE, START, STEPS, EVALUATIONS, SAMPLES, CHECKPOINTS, END = (
    "text", "start", "steps", "evaluations", "samples", "checkpoints", "end",
)  # fmt: skip


def duration(
    config: RunConfig,
    costs: Costs,
    text_tokens: tuple[int, int],
    nearest: float,
    *,
    new_bytes: int = 0,
    before: float | None = None,
) -> Duration:
    """A whole run with these `costs` per occurrence, over (training, validation) tokens.

    `new_bytes` of the text still have to be prepared. `before`, if known, are the seconds from the trainer's
    start to its first step.
    """
    training = config.training
    steps, interval = training.max_iters, training.eval_interval
    evaluations = -(-steps // interval)
    samples = -(-steps // (training.sample_interval or interval)) if training.sample_tokens else 0
    saves = -(-steps // (training.checkpoint_interval or interval))
    counted = {
        STEPS: max(costs.first_step, costs.step) + max(0, steps - 1) * costs.step,
        EVALUATIONS: evaluations * evaluation_tokens(config, text_tokens) * costs.evaluation_token,
        SAMPLES: samples * training.sample_tokens * costs.sample_token,
        CHECKPOINTS: saves * costs.save,
    }
    whole = sum(counted.values())
    budget = training.time_budget * 60 or math.inf
    if whole > budget:  # the clock ends the run
        counted = {name: seconds * budget / whole for name, seconds in counted.items()}
    known = before if before is not None else 0.0
    around = (new_bytes * costs.prepare_byte + costs.start if before is None else 0.0) + costs.end
    factor = RANGES[0] if nearest <= KNOWN else RANGES[1] if nearest <= SIMILAR else RANGES[2]
    low, seconds, high = (
        known + around * times + min(whole * times, budget) for times in (1 / factor, 1.0, factor)
    )
    parts = {
        PREPARE: new_bytes * costs.prepare_byte if before is None else 0.0,
        START: costs.start if before is None else before,
        **counted,
        END: costs.end,
    }
    tokens = training.batch_size * config.model.block_size * training.gradient_accumulation_steps
    speed = tokens / costs.step if costs.step else 0.0
    return Duration(seconds, low, high, speed, costs.memory, nearest <= SIMILAR, parts)


def evaluation_tokens(config: RunConfig, text_tokens: tuple[int, int]) -> int:
    """Tokens that one evaluation reads, of both sides."""
    most = config.training.eval_iters * config.training.batch_size * config.model.block_size
    return sum(min(most, count) for count in text_tokens)
