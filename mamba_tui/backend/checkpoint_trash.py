"""Deleted checkpoints that can still be brought back, and who looks after them.

A deleted checkpoint stays in its run's folder under another name until the console that deleted it is
closed. Until then that console holds a lock on it, which goes with the process whatever ends it: what
nobody holds was left by a console that was killed, and the next one takes it over, with the same
promise: it can be brought back until that console is closed. Where there are no locks, nothing that
others left is touched.
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
    """A checkpoint put aside: its files' names before and now, the manifest first.

    `lock` is the manifest, open and locked; None where the file system has no locks.
    """

    key: str
    moves: tuple[tuple[Path, Path], ...]
    lock: IO[bytes] | None = None


class Trash:
    """What this console can bring back, the newest last."""

    def __init__(self) -> None:
        self.deleted: list[Deleted] = []

    def delete(self, row: CheckpointRow) -> None:
        """Put a checkpoint's files aside. Raises UserError."""
        from core.runs import is_alive

        if is_alive(row.run):
            raise UserError(
                f"{row.run.name} is training and looks after its checkpoints itself; stop it first"
            )
        manifest, stamp = row.info.manifest_path, time.time_ns()
        # Held before it has its new name, so that there is no moment at which it seems to be nobody's.
        lock = hold(manifest)
        moves: list[tuple[Path, Path]] = []
        # The manifest first: from then on the rest is no checkpoint.
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
        """Bring the newest back; its key, "" when there is none. Raises UserError."""
        from core.runs import Run, is_alive

        if not self.deleted:
            return ""
        deleted = self.deleted[-1]
        if not any(aside.exists() for _, aside in deleted.moves):
            self.deleted.pop()  # it must not stand in the way of those before it
            release(deleted.lock)
            raise UserError(f"{deleted.key} is gone: its files are not where they were put")
        for path, aside in deleted.moves:
            if is_alive(Run(path.parent)):
                raise UserError(f"{path.parent.name} is training; stop it to bring {deleted.key} back")
            if path.exists():
                raise UserError(f"{path} was saved again since; {aside.name} beside it is the deleted one")
        # The manifest last: without it the rest is no checkpoint.
        for path, aside in reversed(deleted.moves):
            try:
                move(aside, path)
            except OSError as error:
                raise UserError(f"{path} cannot be brought back: {error.strerror}") from None
        self.deleted.pop()
        release(deleted.lock)
        return deleted.key

    def take_over(self, folders: Iterable[Path]) -> int:
        """Look after what killed consoles left in these run folders; how many checkpoints that are."""
        left = [deleted for folder in folders for deleted in leftovers(folder)]
        self.deleted = left + self.deleted
        return len(left)

    def empty(self) -> None:
        """Really delete."""
        for deleted in self.deleted:
            for _, aside in deleted.moves:
                with contextlib.suppress(OSError):
                    delete(aside)
            release(deleted.lock)
        self.deleted.clear()


def leftovers(folder: Path) -> list[Deleted]:
    """What nobody holds any more, held from now on; the oldest first."""
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
        if "json" not in files:  # a console was killed while it really deleted: finish that
            with contextlib.suppress(OSError):
                delete(moves[0][1])
            release(lock)
            continue
        deleted.append(Deleted(f"{folder.name}/{step}", moves, lock))
    return deleted


def hold(path: Path) -> IO[bytes] | None:
    """The file at `path`, open and locked; None where it is held or no lock is to be had."""
    try:
        file = open_to_read(path)
    except OSError:
        return None
    try:
        # Whoever held it a moment ago may have brought it back or deleted it.
        if try_lock(file) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except OSError:
        pass
    file.close()
    return None


def release(lock: IO[bytes] | None) -> None:
    """Let go of what is held."""
    if lock is not None:
        lock.close()


def move(path: Path, new: Path) -> None:
    """Give a file of a run's folder another name there."""
    with Folder(path.parent, follow_links=True) as folder:
        folder.move(path.name, new.name)


def undo(moves: Iterable[tuple[Path, Path]]) -> None:
    """Give files their names back, as far as that can be done."""
    for path, aside in moves:
        with contextlib.suppress(OSError):
            move(aside, path)
