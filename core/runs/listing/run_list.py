"""All runs of a folder as a list shows them, updated cheaply.

Looking at five hundred runs takes some stats of files. New events are read from where the last look, or the
last console, stopped. For a long history that nobody has read yet, the beginning and the end are shown first;
the rest is read in slices, newest runs first.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config.schema import flat
from core.errors import UserError
from core.runs.directory import Run
from core.runs.event_file import EventReader, read_tail
from core.runs.listing import cache
from core.runs.listing.cache import Kept, Stamp, stamp
from core.runs.listing.fold import RunFold
from core.runs.listing.notes import Notes, notes_path, read_notes
from core.runs.listing.summary import RunSummary, summarize, unread
from core.runs.lock import is_locked
from core.system.files import open_to_read

SLICE_LINES = 4000
SMALL_BYTES = 1 << 17
HEAD_BYTES = 1 << 14
SAVE_SECONDS = 20.0
# A file that changed just before it was read may change again without a newer time.
_TICK_NS = 2_100_000_000


@dataclass
class _Entry:
    """What is known about one run."""

    run: Run
    reader: EventReader
    fold: RunFold = field(default_factory=RunFold)
    glimpse: RunFold | None = None
    """From the beginning and the end of the history, until the rest is read."""
    events: Stamp | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_stamp: Stamp | None = None
    notes: Notes = field(default_factory=Notes)
    notes_stamp: Stamp | None = None
    lock_stamp: Stamp | None = None
    alive: bool = False
    log_stamp: Stamp | None = None
    row: RunSummary | None = None
    touched: float = 0.0
    """When its history was last written, in seconds since 1970, as it was when the run was first seen."""
    new: bool = True
    """Whether nobody has looked at it yet."""
    unsaved: bool = True

    @property
    def behind(self) -> int:
        """Bytes of the history that haven't been read."""
        return self.events[1] - self.reader.offset if self.events else 0


class RunList:
    """The runs of a folder. Its methods wait for the disk; only one thread at a time may enter."""

    def __init__(self, root: Path, cache_file: Path | None = None) -> None:
        self.root = Path(root)
        self._cache_file = cache_file or cache.cache_path(self.root)
        self._kept: dict[str, Any] | None = None
        self._entries: dict[str, _Entry] = {}
        self._saved_at = 0.0
        self._lock = threading.Lock()

    def look(self, seconds: float = math.inf) -> list[RunSummary]:
        """All runs in their current state, living ones first, then the newest. Never raises.

        Runs that are seen for the first time are looked at for about this long, the newest first; the
        others are "unread" until `read_on` has come to them.
        """
        with self._lock:
            deadline = time.monotonic() + seconds
            if self._kept is None:
                self._kept = cache.load_values(self._cache_file)
            before, self._entries = self._entries, {}
            for name in self._names():
                entry = before.get(name) or self._new_entry(name)
                if entry.new or self._look_at(entry):
                    self._entries[name] = entry
            self._look_at_new(deadline)
            return self._rows()

    def _look_at_new(self, deadline: float) -> bool:
        """Look at runs for the first time, the newest first; whether any were waiting for that."""
        waiting = [entry for entry in self._entries.values() if entry.new]
        for entry in sorted(waiting, key=lambda entry: -entry.touched):
            if time.monotonic() >= deadline:
                break
            self._take_over(entry)
            if not self._look_at(entry):
                del self._entries[entry.run.name]
        return bool(waiting)

    def read_on(self, seconds: float = 0.1) -> list[RunSummary] | None:
        """Read what `look` has left, for about this long; None if there was nothing."""
        with self._lock:
            deadline = time.monotonic() + seconds
            any_read = self._look_at_new(deadline)
            waiting = [entry for entry in self._entries.values() if entry.behind > 0]
            waiting.sort(key=lambda entry: (not entry.alive, -(entry.events or (0,))[0]))
            for entry in waiting:
                if time.monotonic() >= deadline:
                    break
                while entry.behind > 0 and time.monotonic() < deadline:
                    if not self._read_slice(entry):
                        break
                    any_read = True
                self._renew(entry)
            if any_read:
                return self._rows()
        self.save(SAVE_SECONDS)
        return None

    def read_all(self) -> list[RunSummary]:
        """Look, and read everything."""
        rows = self.look()
        while (more := self.read_on(1.0)) is not None:
            rows = more
        self.save()
        return rows

    def save(self, after: float = 0.0) -> None:
        """Store what was read on disk, unless that was done within the last `after` seconds."""
        with self._lock:
            now = time.monotonic()
            unsaved = [entry for entry in self._entries.values() if entry.unsaved and entry.behind <= 0]
            if not unsaved or (self._saved_at and now < self._saved_at + after):
                return
            self._saved_at = now
            runs = {}
            for name, entry in self._entries.items():
                position = entry.reader.position
                if position and entry.events and entry.config_stamp and entry.glimpse is None:
                    runs[name] = Kept(entry.fold, position, entry.events, entry.config, entry.config_stamp)
                    entry.unsaved = False
            unread_values = {name: one for name, one in (self._kept or {}).items() if name in self._entries}
            cache.save(self._cache_file, runs, unread_values)

    # ------------------------------------------------------------ one run

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:
            return []

    def _new_entry(self, name: str) -> _Entry:
        run = Run(self.root / name)
        entry = _Entry(run, EventReader(run.events_path))
        events = stamp(run.events_path)
        entry.touched = events[0] / 1e9 if events else 0.0
        if run.config_path.exists():
            entry.row = unread(run, entry.touched)
        return entry

    def _take_over(self, entry: _Entry) -> None:
        """Begin with what was kept of a run, not at the beginning of its history."""
        entry.new, entry.row = False, None
        kept = cache.kept((self._kept or {}).pop(entry.run.name, None))
        if kept is not None:
            entry.fold, entry.events = kept.fold, kept.events
            entry.config, entry.config_stamp = kept.config, kept.config_stamp
            entry.reader.go_to(kept.position)
            entry.unsaved = False

    def _look_at(self, entry: _Entry) -> bool:
        """Update an entry as far as that takes no time; False if there is no run."""
        run, before = entry.run, entry.row
        config, events = stamp(run.config_path), stamp(run.events_path)
        if config is None:
            return False
        if config != entry.config_stamp:
            entry.config, entry.config_stamp, entry.unsaved = _config(run), config, True
            before = None
        alive = self._is_alive(entry)
        notes, log = stamp(notes_path(run)), stamp(run.log_path)
        if notes != entry.notes_stamp:
            entry.notes, entry.notes_stamp, before = read_notes(run), notes, None
        if events != entry.events:
            self._history_changed(entry, events)
            before = None
        if before is None or alive != entry.alive or log != entry.log_stamp:
            entry.alive, entry.log_stamp = alive, log
            self._renew(entry)
        return True

    def _is_alive(self, entry: _Entry) -> bool:
        """A new trainer writes its name into the lock file, so an unchanged file needs no check."""
        now = stamp(entry.run.lock_path)
        if now is None:
            return False
        if now == entry.lock_stamp and not entry.alive:
            return False
        alive = is_locked(entry.run.lock_path)
        unchanging = time.time_ns() - now[0] > _TICK_NS
        entry.lock_stamp = now if unchanging and not alive else None
        return alive

    def _history_changed(self, entry: _Entry, now: Stamp | None) -> None:
        before, entry.events, entry.unsaved = entry.events, now, True
        if now is None or (before is not None and now[1] <= before[1]):
            # Gone, replaced, or changed where it was read already: start from the beginning.
            entry.reader, entry.fold = EventReader(entry.run.events_path), RunFold()
        entry.glimpse = None
        if 0 < entry.behind <= SMALL_BYTES:
            while entry.behind > 0 and self._read_slice(entry):
                pass
        elif entry.behind > 0 and entry.reader.offset == 0:
            entry.glimpse = _glimpse(entry.run)

    def _read_slice(self, entry: _Entry) -> bool:
        """Read on in a history; False if there is nothing more for now."""
        reader = entry.reader
        generation = reader.generation
        lines = reader.poll_lines(SLICE_LINES)
        if reader.generation != generation:
            entry.fold = RunFold()
        if lines:
            entry.fold.feed_lines(lines)
        entry.unsaved = True
        if not lines or entry.behind <= 0:
            entry.glimpse = None
            if not lines and entry.events:  # the rest is a line that is still being written
                entry.events = (entry.events[0], reader.offset, entry.events[2])
        return bool(lines)

    def _renew(self, entry: _Entry) -> None:
        fold = entry.glimpse or entry.fold
        entry.row = summarize(
            entry.run, fold, entry.config, entry.notes, alive=entry.alive, complete=entry.glimpse is None
        )

    def _rows(self) -> list[RunSummary]:
        rows = [entry.row for entry in self._entries.values() if entry.row is not None]
        return sorted(rows, key=lambda row: (not row.alive, -row.changed, row.name))


def _config(run: Run) -> dict[str, Any]:
    try:
        return dict(flat(run.config()))
    except UserError:
        return {}


def _glimpse(run: Run) -> RunFold:
    """The beginning of a long history, which says what the run is, and its end."""
    fold = RunFold()
    try:
        with open_to_read(run.events_path) as file:
            fold.feed_lines(file.read(HEAD_BYTES).split(b"\n")[:-1])
    except OSError:
        return fold
    fold.feed(read_tail(run.events_path, 1 << 16))
    return fold
