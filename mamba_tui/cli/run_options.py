"""Options that the console and headless training share, and the configuration that results from them."""

from __future__ import annotations

import argparse
import stat
from pathlib import Path

from core.config.changes import replace
from core.config.files import WORKING_FILE, apply_settings, load_file, preset, save_file
from core.config.schema import RunConfig
from core.config.setting import show
from core.errors import UserError
from core.runs import Run, check_name, is_alive, list_runs
from core.system.hardware import has_cuda, resolve_device
from mamba_tui.cli.arguments import count_or_auto, number
from mamba_tui.cli.streams import say_note
from mamba_tui.launch_options import Mode

CHECKPOINTS = "checkpoints"


def add_run_place(parser: argparse._ActionsContainer) -> None:
    """Add the option that says where runs are kept."""
    parser.add_argument(
        "--checkpoints",
        default=CHECKPOINTS,
        metavar="DIR",
        help=f"folder of the runs (default {CHECKPOINTS})",
    )


def add_configuration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a configuration."""
    group = parser.add_argument_group("configuration")
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--config", metavar="FILE", help=f"a .json or .toml configuration (default {WORKING_FILE})"
    )
    start.add_argument("--preset", metavar="NAME", help="start from book, original or shakespeare-char")
    group.add_argument("--dataset", metavar="DIR", help="folder of .txt files (default dataset)")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda or mps (default auto)")
    group.add_argument(
        "--max-iters",
        type=count_or_auto,
        metavar="N",
        help="optimizer steps in total; auto: as many as suit the text",
    )
    group.add_argument(
        "--minutes", type=number, metavar="N",
        help="time budget: the run ends within this many minutes (default none)",
    )  # fmt: skip
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="set any key, such as n_embd=[64,48,64]; repeatable",
    )  # fmt: skip


def add_ranks_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many processes train together."""
    parser.add_argument(
        "--ranks",
        metavar="N",
        help="processes that train together under torchrun: a number, or all for one per GPU (default 1)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a configuration and a run."""
    add_configuration_options(parser)
    add_ranks_option(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--run", metavar="NAME", help="name of the run (default: a new one)")
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="continue a run (the newest without --run)")
    mode.add_argument(
        "--fresh", action="store_true", help="start the run over; the old one is kept under another name"
    )
    add_run_place(group)


def configuration(arguments: argparse.Namespace, run: Run | None = None) -> tuple[RunConfig, Path | None]:
    """The configuration that the options ask for, and the file it came from, if any.

    Without --config and --preset it is the configuration of the run to continue, if there is one, or else the
    working file, which is created if it doesn't exist. Raises UserError or ConfigError.
    """
    path: Path | None = None
    if arguments.preset:
        config = preset(arguments.preset, cuda=_on_cuda(arguments.device))
    elif run is not None and not arguments.config:
        config = run.config()
    else:
        path = Path(arguments.config) if arguments.config else WORKING_FILE
        if arguments.config or path.exists():
            config = load_file(path)
        else:
            config = preset(cuda=_on_cuda(None))
            if not (getattr(arguments, "read_only", False) or getattr(arguments, "plan", False)):
                _keep(config, path)
    return _overridden(config, arguments), path


def _keep(config: RunConfig, path: Path) -> None:
    """Create the working file at the first start, or say that it can't be written."""
    try:
        save_file(config, path)
    except UserError:
        say_note(f"{path} cannot be written, so changes of the configuration will not be saved")


def _on_cuda(device: str | None) -> bool:
    return has_cuda() if device in (None, "auto") else str(device).startswith("cuda")


def _overridden(config: RunConfig, arguments: argparse.Namespace) -> RunConfig:
    flags = {
        "dataset_dir": arguments.dataset,
        "device": arguments.device,
        "max_iters": arguments.max_iters,
        "time_budget": arguments.minutes,
    }
    config = replace(config, "the command line", **{k: v for k, v in flags.items() if v is not None})
    ranks = getattr(arguments, "ranks", None)
    config = apply_settings(config, [*([] if ranks is None else [f"ranks={ranks}"]), *arguments.set])
    resolve_device(config.hardware.device)
    return config


def run_mode(arguments: argparse.Namespace) -> Mode:
    """How to treat an existing run: "resume", "fresh", or "auto" (continue it if it is named)."""
    return "resume" if arguments.resume else "fresh" if arguments.fresh else "auto"


def checkpoints_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the runs. Raises UserError if it is a file."""
    path = Path(arguments.checkpoints)
    try:
        info = path.stat()
    except FileNotFoundError:
        return path
    except OSError as error:
        raise UserError(
            f"--checkpoints is {show(str(path))}, which cannot be used ({error.strerror}); accepted: "
            "a folder, or a name for a new one"
        ) from None
    if not stat.S_ISDIR(info.st_mode):
        raise UserError(
            f"--checkpoints is {path}, which is a file; accepted: a folder, or a name for a new one"
        )
    return path


def run_to_resume(arguments: argparse.Namespace, root: Path) -> Run | None:
    """The run to continue: the one that is named, or with --resume alone the newest.

    None if a new run is to be started. Raises UserError if --resume finds no run.
    """
    if arguments.fresh:
        if arguments.run is not None:
            check_name(arguments.run)
        return None
    if arguments.run is not None:
        check_name(arguments.run)
        run = Run(root / arguments.run)
        if arguments.resume and not run.exists:
            known = ", ".join(one.name for one in list_runs(root)) or "none"
            raise UserError(f'--resume: there is no run "{arguments.run}" in {root}; runs there: {known}')
        return run if run.exists else None
    if not arguments.resume:
        return None
    waiting = [run for run in list_runs(root) if run.events_path.exists() and not is_alive(run)]
    if not waiting:
        raise UserError(f"--resume found no run in {root}; start one without --resume")
    return max(waiting, key=lambda run: run.events_path.stat().st_mtime)
