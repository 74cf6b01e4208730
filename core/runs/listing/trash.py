"""Renames and deletes runs. A deleted run can be undeleted: its whole folder is in `.deleted` beside the
runs.

A run in there isn't listed, can't be resumed, and keeps everything until somebody really deletes it. Only
files that this program writes are ever deleted; anything else in the folder stays.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.runs.directory import OURS, Run, check_name, list_runs
from core.runs.lock import is_locked
from core.system.files import Folder, delete_folder, make_folder

FOLDER = ".deleted"
_ASIDE = re.compile(r"(.+)\.(\d{1,20})")
_CHECKPOINT = re.compile(r"checkpoint_step_\d{1,18}\.(json|pt)(\.\d{1,20})?(\.deleted)?")


@dataclass(frozen=True)
class DeletedRun:
    """A deleted run: its name, the folder it had, and where it is now."""

    name: str
    before: Path
    now: Path


def deleted_runs(root: Path) -> list[DeletedRun]:
    """The runs that can be undeleted, the last deleted one last."""
    try:
        names = os.listdir(Path(root) / FOLDER)
    except OSError:
        return []
    trashed = [(int(match[2]), match[1], name) for name in names if (match := _ASIDE.fullmatch(name))]
    return [
        DeletedRun(name, Path(root) / name, Path(root) / FOLDER / aside) for _, name, aside in sorted(trashed)
    ]


def delete_run(run: Run) -> DeletedRun:
    """Delete a run, so that it can be undeleted. Raises UserError, also while it is training."""
    if not run.exists:
        raise UserError(f'there is no run "{run.name}" in {run.path.parent}')
    if is_locked(run.lock_path):
        raise UserError(f"{run.name} is training; stop it first: mamba-tui stop {run.name}")
    root = run.path.parent
    deleted = DeletedRun(run.name, run.path, root / FOLDER / f"{run.name}.{time.time_ns()}")
    try:
        make_folder(root / FOLDER)
        _move(root, run.name, root / FOLDER, deleted.now.name)
    except OSError as error:
        raise UserError(f"{run.path} cannot be deleted: {error.strerror}") from None
    return deleted


def undelete_run(deleted: DeletedRun) -> Run:
    """Undelete a run. Raises UserError if its name is taken by now, or its folder is gone."""
    if deleted.before.exists():
        raise UserError(
            f"there is another {deleted.name} now; rename it, then undelete the one in {deleted.now}"
        )
    try:
        _move(deleted.now.parent, deleted.now.name, deleted.before.parent, deleted.name)
    except FileNotFoundError:
        raise UserError(f"{deleted.name} is gone: {deleted.now} no longer exists") from None
    except OSError as error:
        raise UserError(f"{deleted.name} cannot be brought back: {error.strerror}") from None
    return Run(deleted.before)


def delete_for_good(deleted: DeletedRun) -> int:
    """Free the space of a deleted run. Returns the bytes freed. Files that aren't ours stay."""
    return delete_folder(deleted.now, _is_ours)


def newest_deleted(root: Path, name: str) -> DeletedRun:
    """The last deleted run of a name. Raises UserError that lists the existing ones."""
    all_deleted = deleted_runs(root)
    for deleted in reversed(all_deleted):
        if deleted.name == name:
            return deleted
    known = ", ".join(dict.fromkeys(deleted.name for deleted in all_deleted)) or "there are none"
    raise UserError(f'there is no deleted run "{name}" in {root}; accepted: {known}')


def rename_run(run: Run, name: str) -> Run:
    """Rename a run's folder. Raises UserError, also while it is training or if the name is taken."""
    check_name(name, "the new name")
    root, new = run.path.parent, Run(run.path.parent / name)
    if not run.exists:
        known = ", ".join(one.name for one in list_runs(root)) or "none"
        raise UserError(f'there is no run "{run.name}" in {root}; accepted: {known}')
    if is_locked(run.lock_path):
        raise UserError(f"{run.name} is training; stop it first: mamba-tui stop {run.name}")
    if new.path.exists() or new.path.is_symlink():
        raise UserError(f'"{name}" exists in {root} already; accepted: a name that is not taken')
    try:
        _move(root, run.name, root, name)
    except OSError as error:
        raise UserError(f"{run.path} cannot be renamed: {error.strerror}") from None
    return new


def _move(old_folder: Path, old: str, new_folder: Path, new: str) -> None:
    """Rename a folder of ours. Neither end may be a link."""
    with Folder(old_folder, follow_links=True) as source, Folder(new_folder, follow_links=True) as target:
        source.move_to(old, target, new)


def _is_ours(name: str) -> bool:
    return bool(OURS.fullmatch(name) or _CHECKPOINT.fullmatch(name))
