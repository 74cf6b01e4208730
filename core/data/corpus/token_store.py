"""The token cache on disk: one growing file of ids per tokenizer, and a journal of its entries.

Ids are only ever appended; an entry counts once its journal line is complete, so that a crash loses at most
the texts that are being encoded. Anyone who has mapped the file keeps a valid view whatever happens later.

Every entry has a hash of its ids. The hashes are compared if the file of ids isn't the one that was last
known to be right (by its size, times and inode), and ids outside the vocabulary are refused: a model never
learns from something that only looks like this text.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from core.errors import UserError
from core.system.files import (
    delete,
    make_own_folder,
    open_in_place,
    open_to_append,
    open_to_read,
    read_limited,
    replacing,
    write_atomic,
)
from core.system.locks import wait_for_lock

JOURNAL = "entries.jsonl"
CHECKED = "checked.json"
LARGEST_JOURNAL = 1 << 30
HASH_BYTES = 16
_WASTE_KEPT = 1 << 20
_HASHED_AT_ONCE = 1 << 20


class Entry(NamedTuple):
    """Where a text's ids are: `documents` are the offsets of its openings, `cut` that of its tail.

    `digest` is the BLAKE2b hash of its ids as stored in the file.
    """

    offset: int
    tokens: int
    documents: Sequence[int]
    cut: int | None
    head_bytes: int
    tail_bytes: int
    digest: str

    @property
    def sound(self) -> bool:
        """Whether these numbers are possible together."""
        counts = (self.offset, self.tokens, self.head_bytes, self.tail_bytes, *self.documents)
        return (
            all(type(number) is int and 0 <= number < 1 << 53 for number in counts)
            and list(self.documents) == sorted(self.documents)
            and all(start < self.tokens for start in self.documents)
            and (self.cut is None or (type(self.cut) is int and 0 <= self.cut <= self.tokens))
            and type(self.digest) is str
        )


class TokenStore:
    """The ids of one tokenizer. Writing needs the cache's lock; reading doesn't."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], vocab_size: int) -> None:
        self.folder = folder
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.entries: dict[str, Entry] = {}
        self.notice = ""
        self._file: IO[bytes] | None = None
        with disk_errors(folder):
            make_own_folder(folder)
            self._load()

    def _load(self) -> None:
        journal = self.folder / JOURNAL
        try:
            raw = read_limited(journal, LARGEST_JOURNAL)
        except FileNotFoundError:
            raw = b""
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            rows = json.loads(b"[" + b",".join(whole.splitlines()) + b"]")
            self.generation = int(rows[0]["tokens"]) if rows else 0
            size = self.path.stat().st_size // self.dtype.itemsize if rows else 0
            for row in rows[1:]:
                entry = Entry._make(row[1:])
                if not entry.sound:
                    raise ValueError("an entry is impossible")
                if entry.offset + entry.tokens <= size:
                    self.entries[row[0]] = entry
                else:
                    self.notice = "the token cache was cut short; missing texts are prepared again"
            if rows:
                self._check_ids()
        except (ValueError, LookupError, TypeError, OSError, RecursionError):
            self.entries = {}
            self.generation = self._newest_generation() + 1
            self.notice = "the token cache was damaged and is built again"
            rows = []
        if len(self.entries) < len(rows) - 1 or not rows:
            # Invalid lines must go: lines appended after them would make them look valid.
            self._begin_journal(self.generation, self.entries)
        elif len(whole) != len(raw):
            _truncate(journal, len(whole))
        self.end = max((entry.offset + entry.tokens for entry in self.entries.values()), default=0)
        for path in self.folder.glob("tokens-*.bin"):
            if path != self.path:
                delete(path, missing_ok=True)

    def _check_ids(self) -> None:
        """Forget entries whose ids aren't what was written; nothing to do if they were all right."""
        if not self.entries or _load_checked(self.folder / CHECKED) == self._signature():
            return
        with open_to_read(self.path) as file:
            tokens = np.memmap(file, self.dtype, "r")
            wrong = [key for key, entry in self.entries.items() if not self._is_right(entry, tokens)]
        for key in wrong:
            del self.entries[key]
        if wrong:
            self.notice = "the token cache was changed by something else; affected texts are prepared again"

    def _is_right(self, entry: Entry, tokens: np.ndarray[Any, np.dtype[Any]]) -> bool:
        digest = hashlib.blake2b(digest_size=HASH_BYTES)
        largest = -1
        for low in range(entry.offset, entry.offset + entry.tokens, _HASHED_AT_ONCE):
            part = tokens[low : min(low + _HASHED_AT_ONCE, entry.offset + entry.tokens)]
            digest.update(part.data)
            largest = max(largest, int(part.max()))
        return digest.hexdigest() == entry.digest and largest < self.vocab_size

    def _signature(self) -> list[object]:
        """Something that changes with any write to the ids or the journal."""
        with open_to_read(self.path) as file:
            info = os.fstat(file.fileno())
        journal = hashlib.blake2b(
            read_limited(self.folder / JOURNAL, LARGEST_JOURNAL), digest_size=HASH_BYTES
        )
        return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, journal.hexdigest()]

    def seal(self) -> None:
        """Record that these ids are in use, and that all of them are right now."""
        self.close()
        with contextlib.suppress(OSError):
            os.utime(self.folder / JOURNAL)
        if self.end:
            with disk_errors(self.folder):
                signature = self._signature()
                if _load_checked(self.folder / CHECKED) != signature:
                    write_atomic(self.folder / CHECKED, json.dumps(signature).encode())

    @property
    def path(self) -> Path:
        """The file of ids."""
        return self.folder / f"tokens-{self.generation}.bin"

    def tokens(self) -> np.ndarray[Any, np.dtype[Any]]:
        """All ids, memory-mapped, read-only."""
        self.close()
        if not self.end:
            return np.empty(0, self.dtype)
        with open_to_read(self.path) as file:
            return np.memmap(file, self.dtype, "r", shape=(self.end,))

    def append(self, ids: np.ndarray[Any, np.dtype[Any]]) -> bytes:
        """Write ids after the last entry; they count once `commit` names them. Returns them as bytes."""
        data = ids.astype(self.dtype, copy=False).tobytes()
        left = memoryview(data)
        with disk_errors(self.folder):
            file = self._open()
            while left:  # unbuffered, so that it is known what was written and what wasn't
                left = left[file.write(left) :]
        return data

    def commit(self, entries: dict[str, Entry]) -> None:
        """Make entries valid, which were appended in this order."""
        if not entries:
            return
        with disk_errors(self.folder):
            os.fsync(self._open().fileno())
            with open_to_append(self.folder / JOURNAL) as journal:
                lines = memoryview(b"".join(_line(key, entry) for key, entry in entries.items()))
                while lines:
                    lines = lines[journal.write(lines) :]
                os.fsync(journal.fileno())
        self.entries |= entries
        self.end = max(self.end, *(entry.offset + entry.tokens for entry in entries.values()))

    def close(self) -> None:
        """Close the file that ids are appended to."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def abandon(self) -> None:
        """Forget what was appended but not committed, whatever the state of the disk."""
        self.close()
        with contextlib.suppress(OSError):
            _truncate(self.path, self.end * self.dtype.itemsize)

    def waste(self, used: set[str]) -> int:
        """Bytes that no entry in `used` needs."""
        kept = sum(entry.tokens for key, entry in self.entries.items() if key in used)
        return (self.end - kept) * self.dtype.itemsize

    def compact(self, used: set[str], force: bool = False) -> bool:
        """Drop everything that isn't in `used` if that is most of the file. Returns whether it was done."""
        waste = self.waste(used)
        if not waste or not (force or (waste > _WASTE_KEPT and waste > self.end * self.dtype.itemsize / 2)):
            return False
        old, tokens = self.path, self.tokens()
        kept = sorted(used & self.entries.keys(), key=lambda key: self.entries[key].offset)
        moved: dict[str, Entry] = {}
        end = 0
        new = self.folder / f"tokens-{self.generation + 1}.bin"
        try:
            with replacing(new) as file:
                for key in kept:
                    entry = self.entries[key]
                    for low in range(entry.offset, entry.offset + entry.tokens, 1 << 20):
                        high = min(low + (1 << 20), entry.offset + entry.tokens)
                        file.write(tokens[low:high].tobytes())
                    moved[key] = entry._replace(offset=end)
                    end += entry.tokens
            self._begin_journal(self.generation + 1, moved)
        except (OSError, UserError):  # no room for a second copy: the wasteful file will do
            delete(new, missing_ok=True)
            return False
        self.generation, self.entries, self.end = self.generation + 1, moved, end
        with contextlib.suppress(OSError):
            delete(old)
        return True

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = open_to_append(self.path)  # stays open between pieces
            self._file.truncate(self.end * self.dtype.itemsize)
        return self._file

    def _begin_journal(self, generation: int, entries: dict[str, Entry]) -> None:
        lines = [json.dumps({"tokens": generation}).encode() + b"\n"]
        lines += [_line(key, entry) for key, entry in entries.items()]
        write_atomic(self.folder / JOURNAL, b"".join(lines))

    def _newest_generation(self) -> int:
        numbers = [path.stem.removeprefix("tokens-") for path in self.folder.glob("tokens-*.bin")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)


def _load_checked(path: Path) -> object:
    try:
        return json.loads(read_limited(path, 1 << 12))
    except (OSError, ValueError, RecursionError):
        return None


def _truncate(path: Path, size: int) -> None:
    descriptor = open_in_place(path)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _line(key: str, entry: Entry) -> bytes:
    return json.dumps([key, *entry]).encode() + b"\n"


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a disk's refusal into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"there is no room left for the token cache in {where}: free some space and start again; "
                "text prepared so far is kept"
            ) from error
        raise UserError(f"the token cache in {where} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def cache_lock(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the cache for this process alone; `waiting` is called while another process has it.

    The lock is the operating system's and ends with the process, however that ends.
    """
    with disk_errors(folder):
        descriptor = open_in_place(folder / "lock")
    try:
        wait_for_lock(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)
