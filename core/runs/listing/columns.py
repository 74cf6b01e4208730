"""What a list of runs can show, sort and filter by: its own columns, and every setting of a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.config.schema import SETTINGS
from core.config.setting import show
from core.errors import UserError
from core.runs.listing.summary import RunSummary


@dataclass(frozen=True)
class Column:
    """One column: its name, its value for a run, and whether smaller values come first."""

    name: str
    about: str
    value: Callable[[RunSummary], Any]
    """A number, a text, a tuple of either, or None if unknown."""
    smallest_first: bool = True


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("name", "name of the run", lambda run: run.name),
        Column("state", "what it is doing, or how it ended", lambda run: run.state),
        Column("step", "optimizer steps done, of how many", lambda run: run.step, False),
        Column("learning", "whether it still improves, in words", lambda run: run.learning),
        Column("best", "lowest validation loss so far, bits per byte", lambda run: run.best),
        Column("last", "newest validation loss, bits per byte", lambda run: run.last),
        Column("loss", "newest training loss, nats per token", lambda run: run.train_loss),
        Column("parameters", "parameters of the model", lambda run: run.parameters, False),
        Column("shape", "widths of the layers", lambda run: run.shape),
        Column("mixers", "mixers: a attention, m mamba, 2 mamba2", lambda run: run.mixer_names),
        Column("lr", "highest learning rate", lambda run: run.config.get("learning_rate"), False),
        Column("batch", "tokens of one optimizer step", lambda run: run.batch, False),
        Column("tokens", "training tokens seen", lambda run: run.tokens, False),
        Column("speed", "latest speed, tokens per second", lambda run: run.tokens_per_second, False),
        Column("time", "time spent training", lambda run: run.seconds, False),
        Column("dataset", "folder of the text", lambda run: run.dataset),
        Column("changed", "when its latest event was written", lambda run: run.changed, False),
        Column("size", "size of its files", lambda run: run.bytes, False),
        Column("tags", "your tags", lambda run: run.notes.tags),
        Column("note", "your note", lambda run: run.notes.note),
    )
}
USUAL = ("name", "state", "step", "best", "last", "lr", "parameters", "mixers", "shape", "batch", "tokens",
         "speed", "time", "dataset", "tags", "note")  # fmt: skip
# Other names for the same column that people write in filters.
ALIASES = {"bpb": "best", "bits": "last", "learning_rate": "lr", "params": "parameters", "tag": "tags",
           "mixer": "mixers", "tps": "speed", "run": "name"}  # fmt: skip


def column(name: str, where: str) -> Column:
    """A column by its name or another name for it, or a setting of the configuration.

    Raises UserError that names the most similar one; `where` is the flag or filter that named it.
    """
    known = ALIASES.get(name, name)
    if known in COLUMNS:
        return COLUMNS[known]
    if known in SETTINGS:
        return Column(known, SETTINGS[known].help, lambda run: run.config.get(known))
    near = difflib.get_close_matches(name, [*COLUMNS, *ALIASES, *SETTINGS], 1)
    meant = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(COLUMNS)} and every setting"
    raise UserError(f"{where}: {show(name)} is not a column or a setting; {meant}")


def chosen(text: str, where: str) -> tuple[str, ...]:
    """Names of columns, separated by commas or spaces. Raises UserError."""
    names = tuple(dict.fromkeys(column(name, where).name for name in text.replace(",", " ").split()))
    if not names:
        raise UserError(f"{where} is empty; accepted: some of {', '.join(COLUMNS)} and every setting")
    return names


def sorted_by(
    runs: Sequence[RunSummary], name: str, where: str, *, reverse: bool = False
) -> list[RunSummary]:
    """The runs in the order of a column; runs without a value come last. Raises UserError."""
    by = column(name, where)

    def key(run: RunSummary) -> tuple[bool, Any]:
        value = by.value(run)
        return isinstance(value, (str, tuple)), str(value).lower() if isinstance(
            value, (str, tuple)
        ) else value

    known = [run for run in runs if _known(by.value(run))]
    unknown = [run for run in runs if not _known(by.value(run))]
    # Sorting keeps the order of equal runs, which reversing would not.
    return sorted(known, key=key, reverse=reverse == by.smallest_first) + unknown


def _known(value: Any) -> bool:
    return value is not None and value != "" and value != () and value == value


def differing(runs: Sequence[RunSummary]) -> list[str]:
    """The settings that differ between the runs, in the order of the configuration."""
    missing = object()
    # Which settings are left to the plan is no setting itself; what they became is.
    keys = [key for key in SETTINGS if key != "auto"]
    return [key for key in keys if len({_frozen(run.config.get(key, missing)) for run in runs}) > 1]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
