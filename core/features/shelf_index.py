"""Features of the passages of texts, stored in the user's cache folder so that a text is read only once.

One file per text, named by a hash of everything that its rows depend on: the text's bytes, how they are read,
the model's weights, the tokenizer, the layer and the kind of passage. The file begins with a hash of that
name and of its contents; a damaged file counts as missing, which only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.system.files import Folder, make_own_folder, read_limited, write_atomic
from core.system.folders import cache_root

FORMAT = 1
STALE_DAYS = 30
"""Files that nobody has used for this many days are deleted."""
LARGEST = 1 << 34
_SUM_BYTES = 32
_DAY = 86_400.0
_OURS = re.compile(r"[0-9a-f]{40}\.index|\.[0-9a-f]{40}\.index\.[0-9a-f]{16}\.tmp")


@dataclass(frozen=True)
class TextIndex:
    """The passages of one file."""

    features: npt.NDArray[np.float32]
    """(N, C), the mean of each passage."""
    document: npt.NDArray[np.int64]
    """The number of each passage's document in the file, from 1, (N,)."""
    start: npt.NDArray[np.int64]
    """Where each passage begins and ends, in bytes of its document's clean text, (N,)."""
    end: npt.NDArray[np.int64]


def index_name(*depends_on: Any) -> str:
    """The name for something that depends on these values, all of them JSON."""
    text = json.dumps([FORMAT, *depends_on])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40] + ".index"


class ShelfIndex:
    """The folder of all stored files. If it can't be written, every call computes again."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_root() / "features"

    def load(self, name: str, width: int) -> TextIndex | None:
        """The index stored under a name; None if there is none or it is damaged. `width` is C."""
        path = self.folder / name
        try:
            data = read_limited(path, LARGEST)
            if data[:_SUM_BYTES] != _sum(name, data[_SUM_BYTES:]):
                return None
            with np.load(io.BytesIO(data[_SUM_BYTES:]), allow_pickle=False) as arrays:
                kept = TextIndex(*(arrays[key] for key in ("features", "document", "start", "end")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if kept.features.shape != (len(kept.start), width):
            return None
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime < time.time() - _DAY:
                write_atomic(path, data)  # it is in use, so its days start over
        return kept

    def save(self, name: str, index: TextIndex) -> None:
        """Store an index, and delete those that nobody uses any more."""
        out = io.BytesIO()
        np.savez(out, **vars(index))
        with contextlib.suppress(OSError):
            make_own_folder(self.folder)
            write_atomic(self.folder / name, _sum(name, out.getvalue()) + out.getvalue())
            self._drop_stale()

    def _drop_stale(self) -> None:
        oldest = time.time() - STALE_DAYS * _DAY
        with Folder(self.folder) as folder:

            def stale(name: str) -> bool:
                status = folder.status(name) if _OURS.fullmatch(name) else None
                return status is not None and status.st_mtime < oldest

            folder.delete_matching(stale)


def _sum(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + data).digest()


def check_unchanged(path: str, signature: tuple[int, int, int, int]) -> None:
    """Raise UserError if a file has changed since it was first read."""
    info = os.stat(path)
    if (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino) != signature:
        raise UserError(f"{path} changed while it was being read; try again")
