"""`mamba-tui train --sweep ...` and `mamba-tui sweep TAG`: variants of a run, and which setting mattered."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, whole_number
from mamba_tui.cli.run_options import add_run_place, checkpoints_folder

if TYPE_CHECKING:
    from rich.console import Console

    from core.config.schema import RunConfig
    from core.runs import Run
    from core.sweeps.effects import Effect
    from core.sweeps.plan import Plan
    from core.sweeps.progress import Progress
    from core.sweeps.queue import Queue

WAIT_SECONDS = 0.5
STYLES = {"training": "green", "finished": "cyan", "failed": "red", "pruned": "dim", "interrupted": "yellow"}


def add_sweep_options(train: argparse.ArgumentParser) -> None:
    """Add the options that make `train` a sweep, or make it wait."""
    group = train.add_argument_group("several runs")
    group.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B",
        help="a run for every value, or every combination if repeated; KEY=LOW..HIGH with --random",
    )  # fmt: skip
    group.add_argument(
        "--random", type=whole_number, metavar="N", help="N random combinations instead of all of them"
    )
    group.add_argument(
        "--prune", action="store_true", help="end variants early that are worse than the median of the others"
    )
    group.add_argument(
        "--at-once", type=whole_number, default=0, metavar="N",
        help="variants that train at the same time (default: as many as fit)",
    )  # fmt: skip
    group.add_argument(
        "--tag", metavar="TAG", help="name of the sweep, and of its runs (default: sweep-001 ...)"
    )
    group.add_argument("--after", metavar="RUN", help="start when this run has ended")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sweep",
        help="show a sweep: its variants, and which setting mattered",
        description="Show a sweep: its variants from best to worst, and how much each setting mattered.",
    )
    parser.add_argument("tag", nargs="?", metavar="TAG", help="name of the sweep (default: list all sweeps)")
    add_run_place(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--resume", action="store_true", help="continue with what isn't done, for example after a reboot"
    )
    what.add_argument(
        "--stop", action="store_true", help="save and end the variants that are training, and start no more"
    )
    what.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--detach", action="store_true", help="with --resume: continue in the background and return"
    )


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together."""
    if not arguments.sweep:
        for flag in ("random", "prune", "at_once", "tag"):
            if getattr(arguments, flag):
                raise UserError(f"--{flag.replace('_', '-')} is for sweeps; give --sweep KEY=A,B too")
    elif arguments.run is not None or arguments.resume or arguments.fresh:
        raise UserError("--sweep makes new runs; accepted: --tag TAG instead of --run, --resume and --fresh")


def start(arguments: argparse.Namespace, root: Path, base: RunConfig) -> int:
    """Create the sweep that the options describe and run it. Returns the exit code."""
    from core.sweeps.axes import parse_axis
    from core.sweeps.plan import next_tag
    from core.sweeps.preparing import SweepOptions, prepare

    options = SweepOptions(
        axes=[parse_axis(text) for text in arguments.sweep],
        random=arguments.random,
        prune=arguments.prune,
        at_once=arguments.at_once,
        tag=arguments.tag if arguments.tag is not None else next_tag(root),
        after=arguments.after or "",
    )
    plan = prepare(root, base, options)
    return _carry_out(plan, detach=arguments.detach)


def wait_for(before: Run) -> None:
    """Wait until a run has ended."""
    from core.sweeps.queue import is_to_end
    from mamba_tui.widgets.safe_text import visible

    if is_to_end(before):
        print(f"Waiting until {visible(before.name)} ends; Ctrl-C leaves.", flush=True)
    while is_to_end(before):
        time.sleep(WAIT_SECONDS)


def queue(root: Path, name: str, after: str) -> int:
    """Start a prepared run in the background once another one has ended. Returns the exit code."""
    from core.sweeps.plan import queue_run
    from core.sweeps.process import start_in_background

    start_in_background(queue_run(root, name, after))
    print(f"{name} starts when {after} ends; after a reboot: mamba-tui sweep {name} --resume --detach")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Carry out `mamba-tui sweep`. Returns the exit code."""
    from core.sweeps.plan import load_plan, plan_names

    root = checkpoints_folder(arguments)
    if arguments.tag is None:
        names = plan_names(root)
        print("\n".join(names) if names else "No sweeps yet. Start one: mamba-tui train --sweep KEY=A,B")
        return 0
    plan = load_plan(root, arguments.tag)
    if arguments.resume:
        return _carry_out(plan, detach=arguments.detach)
    if arguments.stop:
        return _stop(plan)
    return _show(plan, as_json=arguments.json)


def _carry_out(plan: Plan, *, detach: bool) -> int:
    from core.sweeps.plan import load_plan
    from core.sweeps.queue import queue_of
    from mamba_tui.widgets.safe_text import visible

    if detach:
        from core.sweeps.process import start_in_background

        start_in_background(plan)
        print(f"{plan.tag} trains in the background; see it: mamba-tui sweep {plan.tag}")
        return 0
    print(
        f"Sweep {plan.tag}; Ctrl-C saves and ends, mamba-tui sweep {plan.tag} --resume continues.", flush=True
    )
    with queue_of(plan, lambda line: print(visible(line), flush=True)) as queue, _interrupts(queue):
        finished = queue.work()
        if not finished:
            print("saving, then ending", flush=True)
            queue.interrupt()
    _show(load_plan(plan.root, plan.tag), as_json=False)
    return 0 if finished else EXIT_INTERRUPTED


@contextlib.contextmanager
def _interrupts(queue: Queue) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end the queue in good order."""

    def leave(number: int, _: object) -> None:
        queue.leaving = True

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(plan: Plan) -> int:
    from core.sweeps.queue import ask_to_stop

    stopped = ask_to_stop(plan)
    print(f"{plan.tag} has ended, {stopped} variants saved; mamba-tui sweep {plan.tag} --resume continues")
    return 0


def _show(plan: Plan, *, as_json: bool) -> int:
    """The variants from best to worst, and the effect of every key."""
    from core.sweeps.effects import Rated, effects
    from core.sweeps.progress import Watcher
    from core.sweeps.queue import is_worked_on

    variants = sorted(Watcher(plan).look(), key=lambda one: one.best)
    ranked = effects([Rated(one.variant.changes, one.best) for one in variants])
    if as_json:
        print(
            json.dumps(
                {
                    "tag": plan.tag,
                    "in_progress": is_worked_on(plan),
                    "variants": [
                        {
                            "run": one.variant.run,
                            "state": one.state,
                            "step": one.step,
                            "bits_per_byte": one.best if math.isfinite(one.best) else None,
                            "changes": one.variant.changes,
                            "message": one.message,
                        }
                        for one in variants
                    ],
                    "effects": [
                        {
                            "key": effect.key,
                            "spread": effect.spread,
                            "share": effect.share,
                            "means": [
                                {"value": name, "bits_per_byte": mean, "variants": number}
                                for name, mean, number in effect.means
                            ],
                        }
                        for effect in ranked
                    ],
                },
                indent=2,
            )
        )
        return 0
    _table(plan, variants)
    if ranked:
        _effects_table(ranked)
    waiting = sum(not one.done and one.state != "training" for one in variants)
    if waiting and not is_worked_on(plan):
        print(f"\n{waiting} not done; mamba-tui sweep {plan.tag} --resume continues")
    return 0


def _table(plan: Plan, variants: list[Progress]) -> None:
    from rich.table import Table
    from rich.text import Text

    from core.config.setting import show
    from mamba_tui.widgets.numbers import loss
    from mamba_tui.widgets.safe_text import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title in ("step", "bits/byte", *plan.keys):
        table.add_column(title, justify="right", no_wrap=True)
    for one in variants:
        table.add_row(
            Text(visible(one.variant.run)),
            Text(one.state, style=STYLES.get(one.state, "")),
            f"{one.step:,}",
            loss(one.best if one.curve else None),
            *(Text(visible(show(one.variant.changes[key]))) for key in plan.keys),
        )
    _console().print(table)
    for one in variants:
        if one.state == "failed":
            print(f"{visible(one.variant.run)}: {visible(one.message)}")


def _effects_table(ranked: list[Effect]) -> None:
    from rich.table import Table
    from rich.text import Text

    from mamba_tui.widgets.safe_text import visible

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("setting", "left"), ("explains", "right"), ("best to worst", "right")):
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("mean bits/byte by value")
    for effect in ranked:
        means = ", ".join(f"{name}: {mean:.4f} ({number})" for name, mean, number in effect.means)
        table.add_row(effect.key, f"{effect.share:.0%}", f"{effect.spread:.4f}", Text(visible(means)))
    console = _console()
    console.print()
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)
