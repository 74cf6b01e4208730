"""Which checkpoint a command uses: options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import UserError
from core.runs import CheckpointInfo, Run, find_checkpoints, list_runs
from core.runs.checkpoints import Which, choose_checkpoint
from mamba_tui.cli.run_options import add_run_place, checkpoints_folder


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a checkpoint and the device to load it on."""
    where = parser.add_argument_group("checkpoint")
    where.add_argument("--run", metavar="NAME", help="a run (default: the one that saved last)")
    which = where.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", metavar="C",
        help="best (lowest validation loss, the default), newest, or the path of a checkpoint_step_<N>.pt",
    )  # fmt: skip
    which.add_argument(
        "--newest", dest="checkpoint", action="store_const", const="newest", help="--checkpoint newest"
    )
    add_run_place(where)
    where.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or mps (default auto)")


def choose(arguments: argparse.Namespace) -> tuple[Path, str]:
    """The checkpoint that the options choose, and a description of it. Raises UserError."""
    if arguments.checkpoint not in (None, "best", "newest"):
        return _named_file(arguments)
    which: Which = arguments.checkpoint or "best"
    root = checkpoints_folder(arguments)
    runs = {run.name: run for run in list_runs(root)}
    if arguments.run and arguments.run not in runs:
        known = ", ".join(sorted(runs)) or "there are none yet; `mamba-tui launch` makes one"
        raise UserError(f'--run is "{arguments.run}", which is not in {root}; accepted: {known}')
    run = runs[arguments.run] if arguments.run else _newest_run(list(runs.values()))
    if run is None:
        raise UserError(f"no run in {root} has a checkpoint yet; train one first: mamba-tui launch")
    info = choose_checkpoint(run.path, which)
    if info is None:
        raise UserError(f'the run "{run.name}" has no checkpoint yet; save one: mamba-tui save {run.name}')
    return info.path, _about(info, run.path)


def _named_file(arguments: argparse.Namespace) -> tuple[Path, str]:
    path = Path(arguments.checkpoint)
    if not path.is_file():
        raise UserError(
            f"--checkpoint is {path}, which is not a file; "
            "accepted: best, newest, or the path of a checkpoint_step_<N>.pt"
        )
    if arguments.run:
        raise UserError(f"--checkpoint is {path} and --run is {arguments.run}; accepted: one of the two")
    info = next((info for info in find_checkpoints(path.parent) if info.path.name == path.name), None)
    return path, _about(info, path.parent) if info else path.name


def _newest_run(runs: list[Run]) -> Run | None:
    """The run that saved a checkpoint last."""
    newest = [(info.time, run) for run in runs if (info := choose_checkpoint(run.path, "newest"))]
    return max(newest, key=lambda pair: pair[0], default=(0.0, None))[1]


def _about(info: CheckpointInfo, folder: Path) -> str:
    """`run-003, step 600, the best: validation 1.478 (the newest is step 5,000: 2.415)`."""
    best, newest = choose_checkpoint(folder, "best"), choose_checkpoint(folder, "newest")
    steps = {"best": best and best.step, "newest": newest and newest.step}
    names = " and ".join(name for name, step in steps.items() if step == info.step)
    words = f"{folder.absolute().name}, step {info.step:,}" + (f", the {names}" if names else "")
    words += f": {_validation(info)}"
    others = [
        f"the {name} is step {other.step:,}: {_validation(other)}"
        for name, other in (("best", best), ("newest", newest))
        if other and other.step != info.step
    ]
    return words + (f" ({'; '.join(dict.fromkeys(others))})" if others else "")


def _validation(info: CheckpointInfo) -> str:
    return "validation unknown" if info.validation_loss is None else f"validation {info.validation_loss:.3f}"


def unverified(checkpoint: Path) -> str:
    """The warning about a checkpoint without a manifest."""
    return (
        f"warning: {checkpoint.name} has no manifest beside it, so its content was not compared with a hash"
    )
