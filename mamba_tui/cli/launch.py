"""`mamba-tui launch`, `train` and `attach`: the console, plain text, or the background."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.config.preflight import check_possible
from core.config.schema import SETTINGS, RunConfig, differences
from core.errors import UserError
from core.runs import (
    EventReader,
    Run,
    check_name,
    discard,
    list_runs,
    next_run_name,
    prepare_run,
    start_trainer,
)
from mamba_tui.cli import sweep
from mamba_tui.cli.headless import TAIL_BYTES, follow, reader_at_end, show_schedule
from mamba_tui.cli.plan import check_plan_options, show_plan
from mamba_tui.cli.run_options import checkpoints_folder, configuration, run_mode, run_to_resume
from mamba_tui.launch_options import LaunchOptions
from mamba_tui.widgets.safe_text import visible

EXIT_BAD_INPUT = 2
SCHEDULE_KEYS = {"max_iters", "schedule", "cooldown_iters"}
"""Settings that change the course of a resumed run's learning rate."""


def run(arguments: argparse.Namespace) -> int:
    """Carry out one of the three commands. Returns the exit code."""
    if arguments.command == "attach":
        return _attach(arguments)
    if not arguments.no_ui and not arguments.detach:
        need_terminal(f"mamba-tui {arguments.command}", "--no-ui or --detach")
    if arguments.command == "train":
        sweep.check_options(arguments)
        check_plan_options(arguments)
    root = checkpoints_folder(arguments)
    resumed = run_to_resume(arguments, root)
    config, path = configuration(arguments, resumed)
    if arguments.command == "train" and arguments.plan:
        if resumed is not None:
            raise UserError(f'--plan is for new runs, and run "{resumed.name}" exists; give another --run')
        return show_plan(arguments, config, root)
    name = resumed.name if resumed else arguments.run
    if not arguments.no_ui and not arguments.detach:
        from mamba_tui.app import main

        return main(
            LaunchOptions(
                config=config,
                config_path=path,
                checkpoints=root,
                run_name=name,
                mode=run_mode(arguments),
                read_only=arguments.read_only,
            )
        )
    _check_text(arguments, config, resumed)
    if arguments.sweep:
        return sweep.start(arguments, root, config)
    name = name or next_run_name(root)
    begun = resumed is not None or Run(root / name).path.exists()
    known = Run(root / name)
    frozen = known.config() if known.exists and run_mode(arguments) != "fresh" else None
    before = find_run(root, arguments.after) if arguments.after else None
    prepared = prepare_run(root, name, config, mode=run_mode(arguments))
    if before is not None and arguments.detach:
        return sweep.queue(root, prepared.name, before.name)
    if before is not None:
        sweep.wait_for(before)
    reader = reader_at_end(prepared)
    pid = start_trainer(prepared)
    if arguments.detach:
        print(f"{prepared.name} is training; watch it: mamba-tui attach {prepared.name}", flush=True)
        if frozen is not None and differences(frozen, prepared.config()).keys() & SCHEDULE_KEYS:
            show_schedule(prepared, reader, pid)
        return 0
    code = follow(prepared, reader, pid=pid)
    if code == EXIT_BAD_INPUT and not begun:
        discard(prepared)
    return code


def _check_text(arguments: argparse.Namespace, config: RunConfig, resumed: Run | None) -> None:
    """Raise UserError unless the run could start. May offer the sample text."""
    # The sample text is offered for a new run only, and only for the default folder.
    untouched = (
        resumed is None
        and arguments.dataset is None
        and config.data.dataset_dir == SETTINGS["dataset_dir"].default
    )
    check_possible(config, resuming=resumed is not None, folder=not untouched)
    ensure_text(config, ask=sys.stdin.isatty() and sys.stdout.isatty(), given=not untouched)


def need_terminal(command: str, instead: str) -> None:
    """Raise UserError unless there is a terminal to draw the console on and to read keys from."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # Textual draws on standard error
        raise UserError(f"{command} needs a terminal for input and standard error; without one: {instead}")


def _attach(arguments: argparse.Namespace) -> int:
    if not arguments.no_ui:
        need_terminal("mamba-tui attach", "--no-ui")
    root = checkpoints_folder(arguments)
    followed = find_run(root, arguments.run)
    if arguments.no_ui:
        reader = EventReader(followed.events_path)
        if followed.events_path.exists():
            reader.skip_to_tail(TAIL_BYTES)
        return follow(followed, reader)
    from mamba_tui.app import main

    return main(
        LaunchOptions(
            config=followed.config(), checkpoints=root, attach=followed.name, read_only=arguments.read_only
        )
    )


def find_run(root: Path, name: str) -> Run:
    """The run of that name. Raises UserError that lists the existing ones."""
    check_name(name, "RUN")
    runs = {one.name: one for one in list_runs(root)}
    if name not in runs:
        known = ", ".join(sorted(runs)) or "there are none yet; `mamba-tui launch` makes one"
        raise UserError(f'there is no run "{name}" in {root}; accepted: {known}')
    return runs[name]


def ensure_text(config: RunConfig, *, ask: bool, given: bool) -> None:
    """Offer the sample text to a new run if its dataset folder is the default one and untouched.

    A folder that the user named, or a resumed run's (`given`), is never written to. Raises UserError if there
    is no text.
    """
    from core.data.sample_corpus import has_texts, is_untouched_default, no_text, write_sample

    folder = Path(config.data.dataset_dir).expanduser()
    if has_texts(folder):
        return
    if given or not is_untouched_default(folder):
        raise UserError(no_text(folder))
    if ask:
        print(
            f"There is no text in {visible(folder)} yet. A sample is available: Python's language reference."
        )
        if input("Write it and train on it? [Y/n] ").strip().lower() not in ("", "y", "yes"):
            raise UserError(
                f"{folder} contains no text; put .txt files there, or name a folder: --dataset DIR"
            )
    print(visible(write_sample(folder)))
