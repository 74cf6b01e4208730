"""The token cache on disk: one growing file of ids per tokenizer, and a journal of what lies where.

Ids are only ever appended; an entry counts once its journal line is complete, so that a crash loses at
most the texts under way. Whoever maps the file keeps a valid view whatever happens later.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from core.errors import UserError
from core.system.files import write_atomic

JOURNAL = "entries.jsonl"
_WASTE_KEPT = 1 << 20


class Entry(NamedTuple):
    """Where a text's ids lie: `documents` are the offsets of its openings, `cut` that of its tail."""

    offset: int
    tokens: int
    documents: Sequence[int]
    cut: int | None
    head_bytes: int
    tail_bytes: int


class TokenStore:
    """The ids of one tokenizer. Writing needs the cache's lock; reading does not."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.dtype = dtype
        self.entries: dict[str, Entry] = {}
        self.notice = ""
        self._file: IO[bytes] | None = None
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._load()

    def _load(self) -> None:
        journal = self.folder / JOURNAL
        raw = journal.read_bytes() if journal.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            rows = json.loads(b"[" + b",".join(whole.splitlines()) + b"]")
            self.generation = int(rows[0]["tokens"]) if rows else 0
            size = self.path.stat().st_size // self.dtype.itemsize if rows else 0
            for row in rows[1:]:
                entry = Entry._make(row[1:])
                if entry.offset + entry.tokens <= size:
                    self.entries[row[0]] = entry
                else:
                    self.notice = "the token cache was cut short: what is missing is prepared again"
        except (ValueError, LookupError, TypeError, OSError):
            self.entries = {}
            self.generation = self._newest_generation() + 1
            self.notice = "the token cache was damaged: it is built again"
            rows = []
        if len(self.entries) < len(rows) - 1 or not rows:
            # Lines that are void must go: what is appended next would make them look valid.
            self._begin_journal(self.generation, self.entries)
        elif len(whole) != len(raw):
            os.truncate(journal, len(whole))
        self.end = max((entry.offset + entry.tokens for entry in self.entries.values()), default=0)
        for path in self.folder.glob("tokens-*.bin"):
            if path != self.path:
                path.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """The file of ids."""
        return self.folder / f"tokens-{self.generation}.bin"

    def tokens(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All ids, memory-mapped, read-only."""
        self.close()
        if not self.end:
            return np.empty(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=(self.end,))

    def append(self, ids: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Write ids behind the last entry; they count once `commit` names them."""
        data = memoryview(ids.astype(self.dtype, copy=False).tobytes())
        with disk_errors(self.folder):
            file = self._open()
            while data:  # unbuffered: what was written is there, and what was not is known
                data = data[file.write(data) :]

    def commit(self, entries: dict[str, Entry]) -> None:
        """Make entries count, which were appended in this order."""
        if not entries:
            return
        with disk_errors(self.folder):
            os.fsync(self._open().fileno())
            with open(self.folder / JOURNAL, "ab") as journal:
                journal.write(b"".join(_line(key, entry) for key, entry in entries.items()))
                journal.flush()
                os.fsync(journal.fileno())
        self.entries |= entries
        self.end = max(self.end, *(entry.offset + entry.tokens for entry in entries.values()))

    def close(self) -> None:
        """Close the file that ids are appended to."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """Forget what was appended but not committed, whatever state the disk is in."""
        self.close()
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.end * self.dtype.itemsize)

    def touch(self) -> None:
        """Note that these ids are in use."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / JOURNAL)

    def waste(self, used: set[str]) -> int:
        """Bytes that no entry in `used` needs."""
        kept = sum(entry.tokens for key, entry in self.entries.items() if key in used)
        return (self.end - kept) * self.dtype.itemsize

    def compact(self, used: set[str], force: bool = False) -> bool:
        """Drop what is not in `used` if that is most of the file; True if it was done."""
        waste = self.waste(used)
        if not waste or not (force or (waste > _WASTE_KEPT and waste > self.end * self.dtype.itemsize / 2)):
            return False
        old, tokens = self.path, self.tokens()
        kept = sorted(used & self.entries.keys(), key=lambda key: self.entries[key].offset)
        moved: dict[str, Entry] = {}
        end = 0
        new = self.folder / f"tokens-{self.generation + 1}.bin"
        try:
            with open(new, "wb") as file:
                for key in kept:
                    entry = self.entries[key]
                    for low in range(entry.offset, entry.offset + entry.tokens, 1 << 20):
                        high = min(low + (1 << 20), entry.offset + entry.tokens)
                        file.write(tokens[low:high].tobytes())
                    moved[key] = entry._replace(offset=end)
                    end += entry.tokens
                file.flush()
                os.fsync(file.fileno())
            self._begin_journal(self.generation + 1, moved)
        except (OSError, UserError):  # no room for a second copy: the wasteful one is as good
            new.unlink(missing_ok=True)
            return False
        self.generation, self.entries, self.end = self.generation + 1, moved, end
        with contextlib.suppress(OSError):
            old.unlink()
        return True

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - stays open between pieces
            self._file.truncate(self.end * self.dtype.itemsize)
        return self._file

    def _begin_journal(self, generation: int, entries: dict[str, Entry]) -> None:
        lines = [json.dumps({"tokens": generation}).encode() + b"\n"]
        lines += [_line(key, entry) for key, entry in entries.items()]
        write_atomic(self.folder / JOURNAL, b"".join(lines))

    def _newest_generation(self) -> int:
        numbers = [path.stem.removeprefix("tokens-") for path in self.folder.glob("tokens-*.bin")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)


def _line(key: str, entry: Entry) -> bytes:
    return json.dumps([key, *entry]).encode() + b"\n"


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what a disk refuses into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"there is no room left for the token cache in {where}: free some space and start again; "
                "what was prepared so far is kept"
            ) from error
        raise UserError(f"the token cache in {where} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def cache_lock(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the cache for this process alone; `waiting` is called while another process has it.

    The lock is the operating system's and ends with the process, however that ends.
    """
    with disk_errors(folder):
        file = open(folder / "lock", "ab")  # noqa: SIM115 - open as long as the lock is held
    with file:
        while not _try_lock(file):
            waiting()
            time.sleep(0.1)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: one process at a time is then the user's care
        return True
    return True


def remove_folder(folder: Path) -> int:
    """Delete a folder of the cache; the bytes that were in it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size
