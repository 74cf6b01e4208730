"""Deleting what was prepared; what cannot be computed again is kept unless it is asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from core.data.corpus.cache import cache_folder
from core.data.corpus.token_store import cache_lock, disk_errors
from core.errors import UserError

KEPT = ("split.json", ".gitignore", "lock")


def clean(
    dataset: str, *, forget_split: bool = False, waiting: Callable[[], None] = lambda: None
) -> tuple[Path, int]:
    """Delete the ids, vocabularies and facts kept for a dataset: the folder, and the bytes that freed.

    The record of what is held out stays, because a new choice might train on what was validation
    text before; `forget_split` deletes it too. Waits for a process that is preparing, calling `waiting`
    meanwhile. Raises UserError where there is no such dataset.
    """
    if not os.path.exists(dataset):
        raise UserError(f"the dataset folder {dataset} does not exist, so nothing was prepared for it")
    folder = cache_folder(dataset)
    freed = 0
    with cache_lock(folder, waiting), disk_errors(folder):
        for path in folder.iterdir():
            if path.name in KEPT and not (forget_split and path.name == "split.json"):
                continue
            freed += _size(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return folder, freed


def _size(path: Path) -> int:
    size = 0
    with contextlib.suppress(OSError):
        for part in path.rglob("*") if path.is_dir() else [path]:
            size += part.stat().st_size
    return size
