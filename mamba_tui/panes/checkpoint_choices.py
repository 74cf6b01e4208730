"""Checkpoints as a list to choose from, the same in every tab that loads one."""

from __future__ import annotations

from collections.abc import Sequence

from mamba_tui.backend.run_client import CheckpointRow
from mamba_tui.widgets.numbers import age, loss

MOST = 1000


def checkpoint_name(row: CheckpointRow) -> str:
    """Run and step, and whether it is the best or the newest of its run."""
    marks = [name for name, applies in (("★ best", row.info.best), ("newest", row.latest)) if applies]
    return f"{row.run.name} step {row.info.step:,}" + (f"  {', '.join(marks)}" if marks else "")


def checkpoint_choices(rows: Sequence[CheckpointRow]) -> list[tuple[str, str, str]]:
    """Key, name and figures of each, as `Choice` takes them."""
    return [
        (
            row.key,
            checkpoint_name(row),
            f"validation {loss(row.info.validation_loss)}, {age(row.info.time)} ago",
        )
        for row in rows[:MOST]
    ]
