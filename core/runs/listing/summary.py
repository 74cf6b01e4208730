"""One run as a list shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from core.runs.directory import Run, directory_bytes
from core.runs.listing.fold import RunFold
from core.runs.listing.notes import Notes
from core.runs.status import log_tail, state_of

_LETTERS = {"standard": "a", "mamba": "m", "mamba2": "2"}


@dataclass(frozen=True)
class RunSummary:
    """Numbers are None if unknown. Losses are in bits per byte unless stated otherwise.

    `complete` is false while only beginning and end of a long history were read: the best may be another one.
    """

    run: Run
    state: str
    message: str
    alive: bool
    complete: bool
    step: int
    target: int
    best: float | None
    best_step: int | None
    last: float | None
    validation_loss: float | None
    train_loss: float | None
    parameters: int | None
    tokens: int | None
    tokens_per_second: float | None
    seconds: float
    changed: float
    bytes: int
    config: Mapping[str, Any]
    learning: str = ""
    """How it is learning, in words."""
    notes: Notes = field(default_factory=Notes)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def shape(self) -> str:
        """The layers' widths: 256-192-128-192-256, with repetitions shortened."""
        widths = self.config.get("n_embd") or ()
        parts: list[tuple[Any, int]] = []
        for width in widths:
            if parts and parts[-1][0] == width:
                parts[-1] = (width, parts[-1][1] + 1)
            else:
                parts.append((width, 1))
        return "-".join(f"{count}x{width}" if count > 1 else f"{width}" for width, count in parts)

    @property
    def mixers(self) -> str:
        """The layers' mixers, one letter each: a attention, m mamba, 2 mamba2."""
        return "".join(_LETTERS.get(name, "?") for name in self.config.get("attention_type") or ())

    @property
    def mixer_names(self) -> tuple[str, ...]:
        """The mixers that occur, by name."""
        return tuple(dict.fromkeys(self.config.get("attention_type") or ()))

    @property
    def dataset(self) -> str:
        """The name of the dataset folder."""
        return PurePath(self.config.get("dataset_dir") or "").name

    @property
    def batch(self) -> int | None:
        """Tokens of one optimizer step."""
        sizes = [self.config.get(key) for key in ("batch_size", "block_size", "gradient_accumulation_steps")]
        if any(type(size) is not int for size in sizes):
            return None
        rows, tokens, batches = sizes
        return rows * tokens * batches  # type: ignore[operator]


UNREAD = "unread"


def unread(run: Run, changed: float) -> RunSummary:
    """A run that is there but was not looked at yet."""
    return RunSummary(
        run=run,
        state=UNREAD,
        message="",
        alive=False,
        complete=False,
        step=0,
        target=0,
        best=None,
        best_step=None,
        last=None,
        validation_loss=None,
        train_loss=None,
        parameters=None,
        tokens=None,
        tokens_per_second=None,
        seconds=0.0,
        changed=changed,
        bytes=0,
        config={},
    )


def summarize(
    run: Run, fold: RunFold, config: Mapping[str, Any], notes: Notes, *, alive: bool, complete: bool
) -> RunSummary:
    """A run from its folded events. Reads the trainer's output if the events don't say how it ended."""
    log = "" if alive or fold.end is not None else log_tail(run.log_path)
    state, message = state_of(run, alive, fold, log)
    step, evaluation = fold.last_step, fold.last_evaluation
    best = fold.records[-1] if fold.records else None
    parameters = fold.run.parameters if fold.run is not None else 0
    max_iters = config.get("max_iters")
    return RunSummary(
        run=run,
        state=state,
        message=message,
        alive=alive,
        complete=complete,
        step=fold.step,
        target=fold.max_iters or (max_iters if type(max_iters) is int else 0),
        best=best[2] if best else None,
        best_step=best[0] if best else None,
        last=evaluation.bits_per_byte if evaluation else None,
        validation_loss=evaluation.validation_loss if evaluation else None,
        train_loss=step.loss if step else None,
        parameters=parameters or None,
        tokens=step.tokens if step else None,
        tokens_per_second=step.tokens_per_second if step else None,
        seconds=fold.seconds,
        changed=fold.newest.time if fold.newest is not None else 0.0,
        bytes=directory_bytes(run.path),
        config=config,
        learning=fold.learning_words,
        notes=notes,
    )
