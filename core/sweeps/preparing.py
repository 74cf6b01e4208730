"""A sweep as requested by the command line or the console: its variants, and runs prepared for a queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.config.schema import RunConfig
from core.errors import UserError
from core.sweeps.axes import Axis, Changes, variants
from core.sweeps.capacity import fitting, sharing_cores
from core.sweeps.plan import Plan, check_after, make_plan, next_tag

MOST_AT_ONCE = 1000


@dataclass(frozen=True)
class SweepOptions:
    """What is varied, and how it is run.

    `random` None takes every combination; `at_once` 0 means as many as fit; `tag` "" the next unused one;
    `after` names a run to wait for.
    """

    axes: Sequence[Axis]
    random: int | None = None
    prune: bool = False
    at_once: int = 0
    tag: str = ""
    after: str = ""


def expand(base: RunConfig, options: SweepOptions) -> tuple[list[Changes], int]:
    """Each variant's changes, and how many train at once. Writes nothing. Raises UserError."""
    if not options.axes:
        raise UserError("nothing is varied; accepted: key=value,value such as learning_rate=1e-3,2e-3")
    if not 0 <= options.at_once <= MOST_AT_ONCE:
        raise UserError(
            f"at once (--at-once) is {options.at_once}; accepted: a number from 1 to {MOST_AT_ONCE:,}, or "
            "0 for as many as fit"
        )
    changes = variants(base, options.axes, options.random)
    return changes, min(options.at_once or fitting(base), len(changes))


def prepare(root: Path, base: RunConfig, options: SweepOptions) -> Plan:
    """Prepare a run for every variant, and the plan of the sweep. Raises UserError."""
    changes, at_once = expand(base, options)
    check_after(root, options.after)
    return make_plan(
        root,
        options.tag or next_tag(root),
        sharing_cores(base, at_once),
        changes,
        prune=options.prune,
        at_once=options.at_once,
        after=options.after,
    )
