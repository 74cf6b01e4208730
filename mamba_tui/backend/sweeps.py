"""Sweeps, and runs that wait for others: how the console starts, lists and ends them. For threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.config.schema import RunConfig
from core.errors import UserError
from mamba_tui.launch_options import Mode

if TYPE_CHECKING:
    from core.runs.listing.summary import RunSummary
    from core.sweeps.preparing import SweepOptions


def start_sweep(root: Path, config: RunConfig, options: SweepOptions) -> str:
    """Prepare a sweep and start its queue. Returns its name. Raises UserError."""
    from core.config.preflight import check_possible
    from core.sweeps.preparing import prepare
    from core.sweeps.process import start_in_background

    check_possible(config)
    plan = prepare(root, config, options)
    start_in_background(plan)
    return plan.tag


def start_after(root: Path, config: RunConfig, name: str, mode: Mode, after: str) -> None:
    """Prepare a run and start the queue that starts it when another run has ended. Raises UserError."""
    from core.config.preflight import check_possible
    from core.runs import Run, prepare_run
    from core.sweeps.plan import queue_run
    from core.sweeps.process import start_in_background

    check_possible(config, resuming=mode != "fresh" and Run(root / name).exists)
    run = prepare_run(root, name, config, mode=mode)
    start_in_background(queue_run(root, run.name, after))


@dataclass(frozen=True)
class SweepRow:
    """A sweep, or a run that waits for another, as shown in a list."""

    name: str
    states: dict[str, int]
    """How many of its runs are in each state; "gone" are those that no longer exist."""
    after: str
    in_progress: bool
    """Whether a queue is running it now."""
    problem: str = ""

    @property
    def size(self) -> int:
        """The number of its runs."""
        return sum(self.states.values())


def sweep_rows(root: Path, runs: Sequence[RunSummary]) -> list[SweepRow]:
    """All sweeps, running ones first."""
    from core.sweeps.plan import load_plan, plan_names
    from core.sweeps.queue import is_worked_on

    state_of = {run.name: run.state for run in runs}
    rows = []
    for tag in plan_names(root):
        try:
            plan = load_plan(root, tag)
        except UserError as error:
            rows.append(SweepRow(tag, {}, "", False, str(error)))
            continue
        states = Counter(
            "pruned" if variant.run in plan.pruned else state_of.get(variant.run, "gone")
            for variant in plan.variants
        )
        rows.append(SweepRow(tag, dict(states), plan.after, is_worked_on(plan)))
    return sorted(rows, key=lambda row: not row.in_progress)


def resume_sweep(root: Path, tag: str) -> None:
    """Start the queue of a sweep again. Raises UserError."""
    from core.sweeps.plan import load_plan
    from core.sweeps.process import start_in_background

    start_in_background(load_plan(root, tag))


def stop_sweep(root: Path, tag: str) -> int:
    """End a sweep, after its variants have saved. Returns how many were training. Raises UserError."""
    from core.sweeps.plan import load_plan
    from core.sweeps.queue import ask_to_stop

    return ask_to_stop(load_plan(root, tag))


def runs_to_wait_for(root: Path) -> list[str]:
    """The runs that are training or that a queue is going to start."""
    from core.runs import list_runs
    from core.sweeps.queue import is_to_end

    return [run.name for run in list_runs(root) if is_to_end(run)]
