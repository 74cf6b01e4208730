"""The file with the history of a run, `events.jsonl`: one writer, one tolerant reader.

One event per line. The trainer is the only writer and only ever appends; a reader may come at any moment and
never delays the writer. `events` defines what a line may contain, docs/events.md the rules for readers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.runs.events import Event, StateEvent, WarningEvent, decode, encode
from core.system.files import open_in_place, open_to_read

READ_BYTES = 4 << 20
LONGEST_LINE = 4 << 20
LARGEST_BACKLOG = 1 << 20
# How much of what was read must still be the same: more than a line, so that it includes a time stamp.
REMEMBERED = 512


@dataclass(frozen=True)
class Position:
    """How far a file has been read, and how to tell that it is still the same file."""

    offset: int
    device: int
    inode: int
    before: bytes
    """The last bytes that were read."""


def torn_tail(descriptor: int) -> tuple[int, int]:
    """(the end of the last complete line, the size of the file)."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1, size
        end = start
    return 0, size


class EventWriter:
    """Appends events. Opening removes an incomplete last line, so that the next event starts a new one.

    A full disk never raises: what can't be written waits in memory (up to 1 MiB, beyond which new events are
    dropped) and is written, in whole lines, once there is space again; `lost` counts dropped events.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lost = 0
        self.listener: Callable[[Event], None] = lambda event: None
        self._clock = clock
        self._waiting = bytearray()
        self._complained = False
        self._descriptor = open_in_place(path, os.O_APPEND)
        end, size = torn_tail(self._descriptor)
        if end < size:
            os.ftruncate(self._descriptor, end)

    def write(self, event: Event) -> None:
        """Append an event with the current time."""
        line = encode(event, self._clock())
        if len(self._waiting) + len(line) > LARGEST_BACKLOG:
            self.lost += 1
        else:
            self._waiting += line
        self._drain()
        self.listener(event)

    def state(self, state: str, step: int, detail: str = "", progress: float | None = None) -> None:
        """Record what the trainer does from now on."""
        self.write(StateEvent(state=state, detail=detail, step=step, progress=progress))

    def warning(self, message: str) -> None:
        """Record something that the user should know; training continues."""
        self.write(WarningEvent(message=message))

    @property
    def removed(self) -> bool:
        """True once the file or its folder was deleted, so that nobody sees what is written."""
        return os.fstat(self._descriptor).st_nlink == 0

    def _drain(self) -> None:
        # After a short write, the rest of the line waits in front, so that lines stay whole.
        try:
            while self._waiting:
                written = os.write(self._descriptor, self._waiting)
                del self._waiting[:written]
        except OSError as error:
            if not self._complained:
                print(f"events cannot be written ({error.strerror}); they wait in memory", file=sys.stderr)
                self._complained = True
            return
        self._complained = False
        if self.lost:
            lost, self.lost = self.lost, 0
            self.warning(f"{lost} events were lost while the disk was full")

    def sync(self) -> None:
        """Force everything written so far onto the disk."""
        self._drain()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            print(f"events cannot be synced ({error.strerror})", file=sys.stderr)

    def close(self) -> None:
        """Sync and close. The writer can't be used afterwards."""
        self.sync()
        os.close(self._descriptor)


def parse(lines: list[bytes]) -> tuple[list[Event], int]:
    """The valid events among complete lines, and the number of invalid lines."""
    values: list[object]
    try:
        # One call for many lines is twice as fast as one call per line.
        values = json.loads(b"[" + b",".join(lines) + b"]")
        if len(values) != len(lines):
            raise ValueError("a line is not one event")
    except (ValueError, RecursionError):
        values = []
        for line in lines:
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError):
                values.append(None)
    events = [event for event in map(decode, values) if event is not None]
    return events, len(lines) - len(events)


class EventReader:
    """Follows an event file that grows, even if it is cut, replaced or missing.

    `skipped` counts complete lines that are no events. `generation` increases when the file turns out to be a
    different one: reading starts over, and so must folding the events.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.skipped = 0
        self.generation = 0
        self.offset = 0
        self.size = 0
        self._identity: tuple[int, int] | None = None
        self._before = b""

    @property
    def behind(self) -> int:
        """Bytes of the file, when last seen, that haven't been read yet."""
        return max(0, self.size - self.offset)

    def skip_to_tail(self, most: int = 1 << 20) -> None:
        """Start with the last `most` bytes: for callers that wait for news and don't need the history.

        Raises OSError if there is no file yet.
        """
        with open_to_read(self.path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - most)
            data = os.pread(file.fileno(), most, start)
        self.offset = start + data.find(b"\n") + 1 if start else 0

    def poll(self, limit: int | None = None) -> list[Event]:
        """The new complete events, about `limit` of them at most; [] if there are none.

        Call again at once while `behind` is large: a long history is read in pieces so that the caller can
        draw in between.
        """
        events: list[Event] = []
        try:
            with open_to_read(self.path) as file:
                self._notice_replacement(file.fileno())
                while limit is None or len(events) < limit:
                    lines = self._next_lines(file.fileno(), limit and limit - len(events))
                    if not lines:
                        break
                    good, bad = parse(lines)
                    events += good
                    self.skipped += bad
        except OSError:  # it doesn't exist yet or can't be reached now: nothing new
            return events
        return events

    def poll_lines(self, limit: int) -> list[bytes]:
        """Like `poll`, but returns lines, about `limit` of them at most, for callers that don't need to parse
        all.
        """
        try:
            with open_to_read(self.path) as file:
                self._notice_replacement(file.fileno())
                return self._next_lines(file.fileno(), limit)
        except OSError:
            return []

    @property
    def position(self) -> Position | None:
        """How far reading has come; None before the first read."""
        return Position(self.offset, *self._identity, self._before) if self._identity else None

    def go_to(self, position: Position) -> None:
        """Continue where another reader stopped.

        If the file is a different one now, the next poll notices.
        """
        self.offset, self._before = position.offset, position.before
        self._identity = (position.device, position.inode)

    def _notice_replacement(self, descriptor: int) -> None:
        file = os.fstat(descriptor)
        identity = (file.st_dev, file.st_ino)
        self.size = file.st_size
        same = identity == self._identity and file.st_size >= self.offset
        if same and self._before:
            same = os.pread(descriptor, len(self._before), self.offset - len(self._before)) == self._before
        if self._identity is not None and not same:
            self.generation += 1
            self.offset, self._before = 0, b""
        self._identity = identity

    def _next_lines(self, descriptor: int, limit: int | None) -> list[bytes]:
        wanted = READ_BYTES if limit is None else min(READ_BYTES, max(65536, limit * 512))
        while True:
            data = os.pread(descriptor, wanted, self.offset)
            end = data.rfind(b"\n") + 1
            if end or len(data) < wanted:
                break
            if wanted >= LONGEST_LINE:  # our writers never make such a line: skip it
                self.offset += len(data)
                self._before = data[-REMEMBERED:]
                return [b""]
            wanted *= 4
        lines = data[:end].split(b"\n")[:-1]
        if limit is not None and len(lines) > limit:
            lines = lines[:limit]
            end = sum(len(line) + 1 for line in lines)
        if end:
            self.offset += end
            self._before = data[max(0, end - REMEMBERED) : end]
        return lines


def read_tail(path: Path, most: int = 1 << 18) -> list[Event]:
    """The valid events among the last `most` bytes, oldest first; [] if there is no file."""
    try:
        with open_to_read(path) as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - most)
            file.seek(start)
            lines = file.read(most).split(b"\n")[:-1]
    except OSError:
        return []
    return parse(lines[1:] if start else lines)[0]


def read_sample(path: Path, blocks: int = 400, block_bytes: int = 8192) -> list[Event]:
    """Events from evenly spaced parts of a long file, in order: a whole history at a glance.

    Reads at most `blocks * block_bytes` bytes, however long the file is; a short file is read whole.
    """
    events: list[Event] = []
    try:
        with open_to_read(path) as file:
            size = file.seek(0, os.SEEK_END)
            if size <= blocks * block_bytes:
                return read_tail(path, size)
            for block in range(blocks):
                start = (size - block_bytes) * block // (blocks - 1)
                lines = os.pread(file.fileno(), block_bytes, start).split(b"\n")[:-1]
                events += parse(lines[1:] if start else lines)[0]
    except OSError:
        return events
    return events
