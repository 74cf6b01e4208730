"""Curves smoothed over steps, extended as they grow."""

from __future__ import annotations

import math

import numpy as np

from core.runs.table import Floats, Table


class Smoother:
    """An exponential average over steps (`width` of them), corrected for its start; gaps stay gaps."""

    def __init__(self, table: Table, name: str) -> None:
        self.table = table
        self.name = name
        self.width = 0.0
        self._done = 0
        self._changes = -1
        self._sum = self._weight = 0.0
        self._values = np.empty(256)

    def values(self, width: float) -> Floats:
        """The smoothed column; only rows that are new since the last call are computed."""
        raw = self.table.column(self.name)
        if width <= 0 or not len(raw):
            return raw
        if width != self.width or self.table.changes != self._changes or self._done > len(raw):
            self.width, self._changes = width, self.table.changes
            self._done, self._sum, self._weight = 0, 0.0, 0.0
        if len(raw) > len(self._values):
            wider = np.empty(max(len(raw), 2 * len(self._values)))
            wider[: self._done] = self._values[: self._done]
            self._values = wider
        # The last row may still change, so it is computed each time and not built upon.
        last = len(raw) - 1
        self._sum, self._weight = self._extend(raw, self._done, last)
        self._done = last
        self._extend(raw, last, last + 1)
        return self._values[: len(raw)]

    def _extend(self, raw: Floats, start: int, end: int) -> tuple[float, float]:
        """Compute rows [start, end) from the state before them. Returns the state after them."""
        total, weight = self._sum, self._weight
        if start >= end:
            return total, weight
        steps = self.table.column("step")
        before = steps[start - 1] if start else steps[0] - 1
        kept = np.exp(-np.diff(steps[start:end], prepend=before) / self.width).tolist()
        result = []
        for value, keep in zip(raw[start:end].tolist(), kept):
            if math.isfinite(value):
                total = keep * total + (1 - keep) * value
                weight = keep * weight + (1 - keep)
                result.append(total / weight if weight else value)
            else:
                result.append(math.nan)
        self._values[start:end] = result
        return total, weight
