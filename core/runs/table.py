"""Many rows of numbers in a bounded amount of memory: a run may write a million events.

`Table` keeps at most `capacity` rows, and with each the smallest and largest loss, so that a spike always
stays visible.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROWS_KEPT = 1 << 15


class Table:
    """Rows of numbers with increasing `step`, at most `capacity` rows of `stride` events each.

    A full table merges pairs of rows and doubles the stride, so that the whole history has the same
    resolution. The last row may cover fewer events and still change.
    """

    LAST_OF = ("step", "time", "tokens", "epoch")

    def __init__(self, columns: tuple[str, ...], capacity: int = 0) -> None:
        self.columns = columns
        self.capacity = capacity = capacity or ROWS_KEPT
        self.count = 0
        self.stride = 1
        self.changes = 0
        self._filled = 0
        self._values = operator.attrgetter(*columns)
        self._data = np.empty((len(columns), min(256, capacity)))
        self._last = np.array([name in self.LAST_OF for name in columns])
        self._low = columns.index("loss_min") if "loss_min" in columns else -1
        self._high = columns.index("loss_max") if "loss_max" in columns else -1

    def add(self, event: Any) -> None:
        """Append an object that has these columns as attributes; None becomes NaN.

        If the trainer went back, the rows of later steps are removed first.
        """
        row = [math.nan if value is None else value for value in self._values(event)]
        if self.count and row[0] <= self._data[0, self.count - 1]:
            self.cut(row[0] - 1)
        if self.count and self._filled < self.stride:
            newest = self._data[:, self.count - 1]
            newest[:] = self._merged(newest, np.array(row), self._filled, 1)
            self._filled += 1
            return
        if self.count == self._data.shape[1]:
            self._make_room()
        self._data[:, self.count] = row
        self.count += 1
        self._filled = 1

    def _merged(self, first: Floats, second: Floats, weight: int, other: int) -> Floats:
        """Merge two neighbors: means, but the last value of counters, and the extremes of the loss.

        A mean with NaN is NaN: a gap stays a gap.
        """
        mean = (first * weight + second * other) / (weight + other)
        mean[self._last] = second[self._last]
        if self._low >= 0:
            mean[self._low] = np.fmin(first[self._low], second[self._low])
            mean[self._high] = np.fmax(first[self._high], second[self._high])
        return mean

    def _make_room(self) -> None:
        if self.count < self.capacity:
            wider = np.empty((len(self.columns), min(2 * self.count, self.capacity)))
            wider[:, : self.count] = self._data
            self._data = wider
            return
        half = self.count // 2
        first, second = self._data[:, 0 : 2 * half : 2], self._data[:, 1 : 2 * half : 2]
        self._data[:, :half] = self._merged(first, second, 1, 1)
        self.count = half
        self.stride *= 2
        self._filled = self.stride
        self.changes += 1

    def cut(self, step: float) -> None:
        """Forget the rows after `step`."""
        self.count = int(np.searchsorted(self._data[0, : self.count], step, side="right"))
        self._filled = self.stride
        self.changes += 1

    def column(self, name: str) -> Floats:
        """A view of one column; don't keep it beyond the next `add`."""
        return self._data[self.columns.index(name), : self.count]

    def joined(self, left: list[int], middle: Table, right: list[int], above: float) -> Table:
        """The rows up to `above`, then the rows of `middle` above it, then the rest of this table."""
        inner = middle._data[:, : middle.count]
        parts = [self._data[:, left], inner[:, inner[0] > above], self._data[:, right]]
        table = Table(self.columns, self.capacity)
        table._data = np.concatenate(parts, axis=1)
        table.count = table._data.shape[1]
        return table
