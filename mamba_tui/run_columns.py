"""The columns of the list of runs as text: a title, a width, and a run's value in a few cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config.setting import show
from mamba_tui.widgets.numbers import age, bytes_size, compact, duration, loss, rate

if TYPE_CHECKING:
    from core.runs.listing.summary import RunSummary


@dataclass(frozen=True)
class Reading:
    """A column: its title, its width in cells (0: the remaining width), and its text for a run."""

    title: str
    cells: int
    text: Callable[[RunSummary], str]
    left: bool = False


def _steps(run: RunSummary) -> str:
    return f"{run.step:,}/{run.target:,}" if run.target else f"{run.step:,}"


def _best(run: RunSummary) -> str:
    # Not all of a long history has been read yet: the best may be another one.
    return loss(run.best) if run.complete else f"≤{loss(run.best)}" if run.best is not None else "…"


def _time(run: RunSummary) -> str:
    return duration(run.seconds) if run.seconds else "-"


READINGS: dict[str, Reading] = {
    "name": Reading("run", 16, lambda run: run.name, left=True),
    "state": Reading("state", 12, lambda run: run.state, left=True),
    "learning": Reading("learning", 28, lambda run: run.learning or "-", left=True),
    "step": Reading("step", 14, _steps),
    "best": Reading("best", 8, _best),
    "last": Reading("last", 8, lambda run: loss(run.last)),
    "loss": Reading("loss", 8, lambda run: loss(run.train_loss)),
    "parameters": Reading("params", 8, lambda run: compact(run.parameters)),
    "shape": Reading("shape", 18, lambda run: run.shape or "-", left=True),
    "mixers": Reading("mixers", 9, lambda run: run.mixers or "-", left=True),
    "lr": Reading("lr", 8, lambda run: rate(run.config.get("learning_rate"))),
    "batch": Reading("batch", 7, lambda run: compact(run.batch)),
    "tokens": Reading("tokens", 8, lambda run: compact(run.tokens)),
    "speed": Reading("tok/s", 8, lambda run: compact(run.tokens_per_second)),
    "time": Reading("time", 12, _time),
    "dataset": Reading("dataset", 14, lambda run: run.dataset or "-", left=True),
    "changed": Reading("changed", 8, lambda run: age(run.changed) if run.changed else "-"),
    "size": Reading("size", 9, lambda run: bytes_size(run.bytes)),
    "tags": Reading("tags", 14, lambda run: ", ".join(run.notes.tags), left=True),
    "note": Reading("note", 24, lambda run: run.notes.note, left=True),
}


def reading(name: str) -> Reading:
    """How a column is shown. A setting is shown under its own name."""
    return READINGS.get(name) or _setting(name)


def _setting(key: str) -> Reading:
    return Reading(key, min(24, max(8, len(key) + 1)), lambda run: setting_text(run, key))


def setting_text(run: RunSummary, key: str) -> str:
    """A run's value of a setting in its shortest form; - if it has none."""
    value = run.config.get(key)
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else show(value)
    if isinstance(value, (tuple, list)):
        same = len(value) > 1 and all(one == value[0] for one in value)
        return f"{len(value)}x{value[0]}" if same else " ".join(map(str, value))
    return str(value) if isinstance(value, str) and value else show(value)
