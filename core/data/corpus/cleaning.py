"""Deletes what was prepared; what can't be computed again is kept unless its deletion is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from core.data.corpus.cache import cache_folder, delete_prepared
from core.data.corpus.token_store import cache_lock, disk_errors
from core.errors import UserError


def clean(
    dataset: str, *, forget_split: bool = False, waiting: Callable[[], None] = lambda: None
) -> tuple[Path, int]:
    """Delete the ids, vocabularies and facts stored for a dataset. Returns the folder and the bytes freed.

    The record of the split stays, because a new choice might train on text that was validation text before;
    `forget_split` deletes it too. Waits for a process that is preparing, calling `waiting` in the meantime.
    The dataset folder itself is never touched. Raises UserError if there is none.
    """
    if not os.path.exists(dataset):
        raise UserError(f"the dataset folder {dataset} does not exist, so nothing was prepared for it")
    folder = cache_folder(dataset)
    with cache_lock(folder, waiting), disk_errors(folder):
        return folder, delete_prepared(folder, forget_split)
