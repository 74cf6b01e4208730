"""A run is a directory: its files, its checkpoints, and how it is prepared for training."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.config.changes import keep_planned, replace
from core.config.preflight import BUILT_IN_TOKENIZERS
from core.config.schema import SETTINGS, RunConfig, differences
from core.config.setting import Value, show
from core.errors import UserError
from core.runs.checkpoints import CheckpointInfo, find_checkpoints
from core.runs.event_file import read_tail
from core.runs.events import StepEvent
from core.runs.lock import is_locked, read_holder, refusal
from core.system.files import Folder, delete_folder, make_folder

Mode = Literal["auto", "resume", "fresh"]
LONGEST_NAME = 120  # below the limit of file systems, so that ".old-1" can be appended
# The files in a run's folder before its first step.
OURS = re.compile(
    r"config\.toml|tokenizer\.json|split\.json|teacher\.pt|notes\.json|events\.jsonl|run\.lock|trainer\.log(\.1)?"
    r"|control|\d{1,30}-[0-9a-f]+\.json|\..+\.[0-9a-f]+\.tmp"
)


@dataclass(frozen=True)
class Run:
    """One run's directory. Cheap to create; nothing is read until it is needed."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: the current name of its folder."""
        return self.path.name or os.path.basename(os.path.abspath(self.path))

    @property
    def exists(self) -> bool:
        """True if the directory holds a run."""
        return self.config_path.is_file()

    @property
    def config_path(self) -> Path:
        """The frozen configuration."""
        return self.path / "config.toml"

    @property
    def tokenizer_path(self) -> Path:
        """The run's own tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def split_path(self) -> Path:
        """Which texts this run trains on and which it validates on."""
        return self.path / "split.json"

    @property
    def teacher_path(self) -> Path:
        """The weights of the model that this run's model also learns from, where there is one."""
        return self.path / "teacher.pt"

    @property
    def events_path(self) -> Path:
        """The history."""
        return self.path / "events.jsonl"

    @property
    def lock_path(self) -> Path:
        """The file that is locked while the run is alive."""
        return self.path / "run.lock"

    @property
    def control_path(self) -> Path:
        """The folder for commands."""
        return self.path / "control"

    @property
    def log_path(self) -> Path:
        """The trainer's output."""
        return self.path / "trainer.log"

    def config(self) -> RunConfig:
        """The frozen configuration. Raises UserError if it is missing or damaged."""
        from core.config.files import load_frozen

        if not self.exists:
            raise UserError(f'there is no run "{self.name}" in {self.path.parent}')
        return load_frozen(self.config_path)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Every checkpoint with a manifest, sorted by step. A save without a manifest never finished."""
        return find_checkpoints(self.path)


def list_runs(root: Path) -> list[Run]:
    """The runs in a folder, sorted by name; [] if there is no such folder."""
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [run for name in folders if (run := Run(Path(root) / name)).exists]


def next_run_name(root: Path, stem: str = "run") -> str:
    """The first unused name: run-001, run-002, ..."""
    number = 1
    while (Path(root) / f"{stem}-{number:03d}").exists():
        number += 1
    return f"{stem}-{number:03d}"


def check_name(name: str, flag: str = "--run") -> None:
    """Raise UserError unless `name`, given as `flag`, can be the name of a run's folder."""
    good = name and len(name.encode(errors="replace")) <= LONGEST_NAME and not name.startswith((".", "-"))
    if not good or any(not character.isprintable() or character in '/\\:*?"<>|' for character in name):
        raise UserError(
            f"{flag} is {show(name)}; accepted: a name of letters, digits, spaces, dots, dashes and "
            f"underscores, of at most {LONGEST_NAME} bytes, that begins with none of . and -"
        )


def prepare_run(root: Path, name: str, config: RunConfig | None, *, mode: Mode = "auto") -> Run:
    """Prepare a run for `start_trainer` and freeze its configuration.

    "auto" continues the run if it exists, "resume" requires that it does, "fresh" renames an old one and
    starts over. If `config` is None the frozen one is kept. Raises UserError if the run is alive, or if
    `config` changes something that the run's checkpoints depend on.
    """
    check_name(name)
    run = Run(Path(root) / name)
    if is_locked(run.lock_path):
        raise UserError(refusal(name, read_holder(run.lock_path)))
    if mode == "resume" and not run.exists:
        raise UserError(f'--resume: there is no run "{name}" in {root}')
    if mode == "fresh" and run.path.exists():
        _move_aside(run)
    if run.exists:
        if config is None:
            run.config()  # a damaged one is refused here, and not later in a trainer
        else:
            _apply_changes(run, config)
        return run
    if config is None:
        raise UserError(f'run "{name}" in {root} has no configuration to continue with')
    _make_folders(run)
    _freeze(run, portable(config))
    return run


def discard(run: Run) -> None:
    """Remove a run that never took a step, so that a mistyped option leaves nothing behind.

    A run with a step, a checkpoint or a living trainer is left alone.
    """
    begun = any(isinstance(event, StepEvent) for event in read_tail(run.events_path))
    if not begun and not is_locked(run.lock_path) and not any(run.path.glob("checkpoint_step_*")):
        delete_folder(run.path, lambda name: OURS.fullmatch(name) is not None)


def portable(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, so that a run can be resumed from any folder."""
    changes = {"dataset_dir": _absolute(config.data.dataset_dir)}
    if config.data.tokenizer not in BUILT_IN_TOKENIZERS:
        changes["tokenizer"] = _absolute(config.data.tokenizer)
    if config.training.teacher:
        changes["teacher"] = _absolute(config.training.teacher)
    return replace(config, **changes)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _make_folders(run: Run) -> None:
    try:
        make_folder(run.control_path)
    except OSError as error:
        raise UserError(
            f"{run.path} cannot be made ({error.strerror}); accepted: a folder that can be written to, "
            "given by --checkpoints"
        ) from None


def _freeze(run: Run, config: RunConfig) -> None:
    from core.config.files import save_file

    save_file(config, run.config_path)


def _move_aside(run: Run) -> None:
    number = 1
    while (aside := run.path.with_name(f"{run.name}.old-{number}")).exists():
        number += 1
    try:
        with Folder(run.path.parent, follow_links=True) as root:
            root.move(run.name, aside.name)
    except OSError as error:
        raise UserError(f"--fresh: {run.path} cannot be moved to {aside.name} ({error.strerror})") from None


def _apply_changes(run: Run, config: RunConfig) -> None:
    frozen = run.config()
    wanted = keep_planned(portable(config), frozen)
    changes = differences(frozen, wanted)
    refused = fixed_differences(frozen, wanted)
    if refused:
        raise UserError(fixed_message(run.name, refused))
    if changes:
        _freeze(run, wanted)


def fixed_differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Value, Value]]:
    """The changes that checkpoints of the old configuration don't allow."""
    return {key: pair for key, pair in differences(old, new).items() if SETTINGS[key].fixed}


def fixed_message(name: str, refused: Mapping[str, tuple[Value, Value]]) -> str:
    """Why a run can't continue with these changes, and what to do instead."""
    lines = []
    for key, pair in refused.items():
        old, new = (show(SETTINGS[key].in_words(value)) for value in pair)
        lines.append(f"  {key} is {old} in the run, {new} asked for")
    return (
        f'run "{name}" cannot continue with another model or another way of reading the text:\n'
        + "\n".join(lines)
        + "\nkeep the old values, start another run with --run NAME, or start this one over with --fresh "
        "(the old run is renamed, not deleted)"
    )


def directory_bytes(path: Path) -> int:
    """The total size of a run's files."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    total += entry.stat(follow_symlinks=False).st_size if entry.is_file() else 0
                except OSError:  # deleted in the meantime
                    continue
    except OSError:
        return total
    return total


def age_of(moment: float) -> float:
    """Seconds since a moment; 0 if the clock was set back past it."""
    return max(0.0, time.time() - moment)
