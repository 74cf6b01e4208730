"""The file that holds the history of a run, `events.jsonl`: one writer, one tolerant reader.

One event a line. The trainer is the only writer and only ever appends; a reader may come at any
moment and never holds the writer up. `events` says what a line may hold, docs/events.md
what readers must keep to.
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
# How much of what was read must still be there: more than a line, so that a time stamp is among it.
REMEMBERED = 512


@dataclass(frozen=True)
class Position:
    """How far a file was read, and how to tell that it is still the same file."""

    offset: int
    device: int
    inode: int
    before: bytes
    """The last bytes that were read."""


def torn_tail(descriptor: int) -> tuple[int, int]:
    """(where the last complete line ends, size of the file)."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1, size
        end = start
    return 0, size


class EventWriter:
    """Appends events. Opening cuts a torn tail, so that the next event starts a line of its own.

    A full disk never raises: what cannot be written waits in memory (up to 1 MiB, then the newest
    is dropped) and goes out, complete, when there is room again; `lost` counts what was dropped.
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
        """Append an event, at this moment."""
        line = encode(event, self._clock())
        if len(self._waiting) + len(line) > LARGEST_BACKLOG:
            self.lost += 1
        else:
            self._waiting += line
        self._drain()
        self.listener(event)

    def state(self, state: str, step: int, detail: str = "", progress: float | None = None) -> None:
        """What the trainer does from now on."""
        self.write(StateEvent(state=state, detail=detail, step=step, progress=progress))

    def warning(self, message: str) -> None:
        """Something the user should know; training goes on."""
        self.write(WarningEvent(message=message))

    @property
    def removed(self) -> bool:
        """True once the file, or the folder it lay in, was deleted: what is written reaches nobody."""
        return os.fstat(self._descriptor).st_nlink == 0

    def _drain(self) -> None:
        # A short write leaves the rest of its line waiting in front, so lines stay whole.
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
        """Put everything written so far on the disk itself."""
        self._drain()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            print(f"events cannot be synced ({error.strerror})", file=sys.stderr)

    def close(self) -> None:
        """Sync and close; the writer is not used again."""
        self.sync()
        os.close(self._descriptor)


def parse(lines: list[bytes]) -> tuple[list[Event], int]:
    """The valid events among complete lines, and how many lines were not."""
    values: list[object]
    try:
        # One call for many lines is twice as fast as a call for each.
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
    """Follows an event file that grows, and survives its being cut, replaced or missing.

    `skipped` counts complete lines that are no events. `generation` grows when the file turns out
    to be another one than before: reading starts over, and so must whoever folds the events.
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
        """Bytes of the file, as last seen, that are not read yet."""
        return max(0, self.size - self.offset)

    def skip_to_tail(self, most: int = 1 << 20) -> None:
        """Begin with the last `most` bytes: for who waits for news and not for the history.

        Raises OSError when there is no file yet.
        """
        with open_to_read(self.path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - most)
            data = os.pread(file.fileno(), most, start)
        self.offset = start + data.find(b"\n") + 1 if start else 0

    def poll(self, limit: int | None = None) -> list[Event]:
        """The new complete events, at most about `limit` of them; [] when there are none.

        Call again at once while `behind` is large: a long history comes in pieces so that the
        caller can draw in between.
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
        except OSError:  # not there yet, or out of reach for now: nothing new
            return events
        return events

    def poll_lines(self, limit: int) -> list[bytes]:
        """As `poll`, but the lines themselves, at most about `limit`: for who does not need each of them."""
        try:
            with open_to_read(self.path) as file:
                self._notice_replacement(file.fileno())
                return self._next_lines(file.fileno(), limit)
        except OSError:
            return []

    @property
    def position(self) -> Position | None:
        """Where reading has come to; None before the first."""
        return Position(self.offset, *self._identity, self._before) if self._identity else None

    def go_to(self, position: Position) -> None:
        """Go on where another reader was. If the file is another one by now, the next poll notices."""
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
            if wanted >= LONGEST_LINE:  # no writer of ours makes such a line: pass over it
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
    """The valid events among the last `most` bytes, oldest first; [] when there is no file."""
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
    """Events from evenly spread places of a long file, in order: a whole history at a glance.

    Reads at most `blocks * block_bytes` bytes however long the file is; a short one is read whole.
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
