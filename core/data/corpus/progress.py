"""Progress of preparing, reported often and cheaply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report: the stage, the file, and bytes done and total."""

    stage: str
    done: int
    total: int
    file: str
    rate: float
    seconds_left: float | None

    @property
    def fraction(self) -> float:
        """The share that is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 0.0

    @property
    def text(self) -> str:
        """In words, such as `encoding 43%, 12.3 MB/s, 8 s left`."""
        if not self.total:
            return self.stage
        parts = [f"{self.stage} {self.fraction:.0%}"]
        if self.done and self.rate > 0:
            parts.append(f"{self.rate / 1e6:.1f} MB/s")
        if self.done and self.seconds_left:
            seconds = round(self.seconds_left)
            left = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
            parts.append(f"{left} left")
        return ", ".join(parts)


Callback = Callable[[Progress], None]


class Reporter:
    """Calls back at most `per_second` times a second. An exception in the callback ends the work."""

    def __init__(self, callback: Callback | None, per_second: float = 10.0) -> None:
        self._callback = callback
        self._interval = 1 / per_second
        self._last = 0.0
        self._lock = threading.Lock()
        self.begin("listing", 0)

    def begin(self, stage: str, total: int) -> None:
        """Begin a stage of `total` bytes."""
        self.stage, self.total, self.done, self.file = stage, total, 0, ""
        self._began = time.monotonic()
        self.tell(force=True)

    def wait(self, stage: str) -> None:
        """Report that the work waits for something else."""
        if self.stage != stage:
            self.begin(stage, 0)
        self.tell()

    def count(self, amount: int, file: str) -> None:
        """Count `amount` bytes as done, from any thread; does not call back."""
        with self._lock:
            self.done += amount
            self.file = file

    def add(self, amount: int, file: str) -> None:
        """Count `amount` bytes as done and call back if it is time, from the preparing thread."""
        self.count(amount, file)
        self.tell()

    def tell(self, force: bool = False) -> None:
        """Call back if it is time."""
        now = time.monotonic()
        if self._callback is None or (not force and now - self._last < self._interval):
            return
        self._last = now
        elapsed = now - self._began
        rate = self.done / elapsed if elapsed > 0 else 0.0
        # A compressed file that holds more than was expected leaves nothing to wait for, not less than that.
        left = max(0.0, (self.total - self.done) / rate) if rate > 0 else None
        self._callback(Progress(self.stage, self.done, self.total, self.file, rate, left))
