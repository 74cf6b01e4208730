"""Deleted checkpoints that can be undeleted, and which console looks after them.

A deleted checkpoint stays in its run's folder under another name until the console that deleted it is closed.
Until then that console holds a lock on it, which ends with the process whatever ends it. A deleted checkpoint
without a lock was left by a console that was killed; the next console takes it over, and it can be undeleted
until that one is closed. On file systems without locks, nothing from other consoles is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.errors import UserError
from core.system.files import Folder, delete, open_to_read
from core.system.locks import try_lock
from mamba_tui.backend.run_client import CheckpointRow

ASIDE = re.compile(r"(checkpoint_step_(\d{1,18})\.(json|pt))(?:\.(\d{1,20}))?\.deleted")


@dataclass(frozen=True)
class Deleted:
    """A deleted checkpoint: the names of its files before and now, the manifest first.

    `lock` is the manifest, open and locked; None if the file system has no locks.
    """

    key: str
    moves: tuple[tuple[Path, Path], ...]
    lock: IO[bytes] | None = None


class Trash:
    """The checkpoints that this console can undelete, the last deleted one last."""

    def __init__(self) -> None:
        self.deleted: list[Deleted] = []

    def delete(self, row: CheckpointRow) -> None:
        """Delete a checkpoint, so that it can be undeleted. Raises UserError."""
        from core.runs import is_alive

        if is_alive(row.run):
            raise UserError(
                f"{row.run.name} is training and looks after its checkpoints itself; stop it first"
            )
        manifest, stamp = row.info.manifest_path, time.time_ns()
        # Locked before it gets its new name, so that it is never without an owner.
        lock = hold(manifest)
        moves: list[tuple[Path, Path]] = []
        # The manifest first: without it the rest is no checkpoint.
        for path in (manifest, row.info.path):
            aside = path.with_name(f"{path.name}.{stamp}.deleted")
            try:
                move(path, aside)
            except FileNotFoundError:
                continue
            except OSError as error:
                undo(moves)
                release(lock)
                raise UserError(f"{path} cannot be deleted: {error.strerror}") from None
            moves.append((path, aside))
        self.deleted.append(Deleted(row.key, tuple(moves), lock))

    def restore(self) -> str:
        """Undelete the last one. Returns its key, "" if there is none. Raises UserError."""
        from core.runs import Run, is_alive

        if not self.deleted:
            return ""
        deleted = self.deleted[-1]
        if not any(aside.exists() for _, aside in deleted.moves):
            self.deleted.pop()  # it must not block the ones before it
            release(deleted.lock)
            raise UserError(f"{deleted.key} is gone: its files were moved or deleted")
        for path, aside in deleted.moves:
            if is_alive(Run(path.parent)):
                raise UserError(f"{path.parent.name} is training; stop it to undelete {deleted.key}")
            if path.exists():
                raise UserError(f"{path} was saved again since; {aside.name} beside it is the deleted one")
        # The manifest last: without it the rest is no checkpoint.
        for path, aside in reversed(deleted.moves):
            try:
                move(aside, path)
            except OSError as error:
                raise UserError(f"{path} cannot be undeleted: {error.strerror}") from None
        self.deleted.pop()
        release(deleted.lock)
        return deleted.key

    def take_over(self, folders: Iterable[Path]) -> int:
        """Take over what killed consoles left in these run folders. Returns the number of checkpoints."""
        left = [deleted for folder in folders for deleted in leftovers(folder)]
        self.deleted = left + self.deleted
        return len(left)

    def empty(self) -> None:
        """Delete everything permanently."""
        for deleted in self.deleted:
            for _, aside in deleted.moves:
                with contextlib.suppress(OSError):
                    delete(aside)
            release(deleted.lock)
        self.deleted.clear()


def leftovers(folder: Path) -> list[Deleted]:
    """Deleted checkpoints without an owner, locked from now on; the oldest first."""
    groups: dict[tuple[str, str], dict[str, tuple[Path, Path]]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        if match := ASIDE.fullmatch(name):
            files = groups.setdefault((match[4] or "", match[2]), {})
            files[match[3]] = (folder / match[1], folder / name)
    deleted = []
    for (_, step), files in sorted(groups.items(), key=lambda item: (len(item[0][0]), item[0])):
        moves = tuple(files[kind] for kind in ("json", "pt") if kind in files)
        lock = hold(moves[0][1])
        if lock is None:
            continue
        if "json" not in files:  # a console was killed during the permanent deletion: finish it
            with contextlib.suppress(OSError):
                delete(moves[0][1])
            release(lock)
            continue
        deleted.append(Deleted(f"{folder.name}/{step}", moves, lock))
    return deleted


def hold(path: Path) -> IO[bytes] | None:
    """The file at `path`, open and locked; None if another process holds it or there are no locks."""
    try:
        file = open_to_read(path)
    except OSError:
        return None
    try:
        # Its last owner may have undeleted or permanently deleted it a moment ago.
        if try_lock(file) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except OSError:
        pass
    file.close()
    return None


def release(lock: IO[bytes] | None) -> None:
    """Release a lock."""
    if lock is not None:
        lock.close()


def move(path: Path, new: Path) -> None:
    """Rename a file of a run's folder."""
    with Folder(path.parent, follow_links=True) as folder:
        folder.move(path.name, new.name)


def undo(moves: Iterable[tuple[Path, Path]]) -> None:
    """Give files their names back, as far as possible."""
    for path, aside in moves:
        with contextlib.suppress(OSError):
            move(aside, path)
