"""The part of a run that its charts show, remembered by the run's name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mamba_tui.widgets.chart.line_chart import LineChart

WINDOWS_KEPT = 50


@dataclass(frozen=True)
class Window:
    """An x range on one of the axes (None for everything), and whether it follows the newest point."""

    axis: str
    follow: bool = True
    x_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, chart: LineChart, axis: str) -> Window:
        """What a chart shows now."""
        return cls(axis, chart.follow, chart.view)

    @classmethod
    def read(cls, value: object) -> Window | None:
        """A window as it was stored; None if it isn't valid."""
        if not isinstance(value, dict):
            return None
        axis, follow, x_range = value.get("axis"), value.get("follow"), value.get("x_range")
        if not isinstance(axis, str) or not isinstance(follow, bool):
            return None
        if x_range is None:
            return cls(axis, follow)
        if not isinstance(x_range, list) or len(x_range) != 2:
            return None
        if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in x_range):
            return None
        low, high = map(float, x_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return None
        return cls(axis, follow, (low, high))

    def keep(self, windows: dict[str, Any], run: str) -> None:
        """Store it among the windows of other runs, the newest last; a view of everything isn't stored."""
        windows.pop(run, None)
        if self.x_range is None and self.follow:
            return
        x_range = None if self.x_range is None else list(self.x_range)
        windows[run] = {"axis": self.axis, "follow": self.follow, "x_range": x_range}
        for name in list(windows)[:-WINDOWS_KEPT]:
            del windows[name]

    def show(self, chart: LineChart) -> None:
        """Show it again. A window that followed the run shows as much of its newest part."""
        x_range, extent = self.x_range, chart.extent
        if x_range is not None and extent is not None and self.follow:
            x_range = (extent[1] - (x_range[1] - x_range[0]), extent[1])
        chart.set_view(x_range, follow=self.follow)
