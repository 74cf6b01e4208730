"""One drawn state of a chart: lines, axes, markers and crosshair as strips of text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip

from mamba_tui.widgets.chart import legend, raster
from mamba_tui.widgets.chart.axes import Axis, log_ticks, reading, ticks
from mamba_tui.widgets.chart.raster import Floats
from mamba_tui.widgets.numbers import compact, not_finite
from mamba_tui.widgets.safe_text import clip


@dataclass(frozen=True)
class Line:
    """One series: x ascending, y of the same length, and optionally the range behind each point."""

    name: str
    x: Any
    y: Any
    color: str
    low: Any = None
    high: Any = None
    faint: str = ""
    points: bool = False
    digits: int = 4


@dataclass(frozen=True)
class Marker:
    """A glyph on the x axis: a checkpoint, an evaluation, a pause."""

    x: float
    glyph: str
    color: str
    label: str = ""


@dataclass(frozen=True)
class View:
    """Which part of the data is shown, and how. A linear y axis shows at least `least`.

    `names_x` says where the crosshair is; of several charts in step only one needs to. `x_unit` names what x
    counts, at the end of its labels.
    """

    x_range: tuple[float, float] | None = None
    axis: Axis = "number"
    log_y: bool = False
    ignore_outliers: bool = False
    crosshair: float | None = None
    least: tuple[float, float] | None = None
    names_x: bool = True
    outliers_note: str = ""
    x_unit: str = ""


@dataclass(frozen=True)
class Look:
    """Styles of everything that is not a series."""

    base: Style = field(default_factory=Style.null)
    axis: Style = field(default_factory=Style.null)
    grid: Style = field(default_factory=Style.null)
    title: Style = field(default_factory=Style.null)
    crosshair: Style = field(default_factory=Style.null)
    empty: Style = field(default_factory=Style.null)
    gap: Style = field(default_factory=Style.null)


def x_extent(lines: list[Line]) -> tuple[float, float] | None:
    """Smallest and largest finite x of all lines."""
    low, high = math.inf, -math.inf
    for line in lines:
        if len(line.x):
            low, high = min(low, float(line.x[0])), max(high, float(line.x[-1]))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


class ChartFrame:
    """The chart at one size; `strips()` is its text.

    The top row is title and legend, the bottom rows are axis and labels; each is left out if there is no room
    for it, so that 5 x 2 cells still show a curve.
    """

    def __init__(
        self,
        size: Size,
        title: str,
        unit: str,
        empty: str,
        lines: list[Line],
        markers: list[Marker],
        view: View,
        look: Look,
    ) -> None:
        self.size = size
        self.title = title
        self.unit = unit
        self.empty = empty
        self.lines = lines
        self.markers = markers
        self.view = view
        self.look = look
        width, height = size
        self.has_header = height >= 4 and width >= 12
        self.has_axes = height >= 6 and width >= 20
        named = [f"{lines[index].name} 0.0000" for index in self._order() if lines[index].name.strip()]
        # What is drawn behind gets rows of its own where they leave the plot its height.
        self.legend_rows = legend.rows_needed(named, width, (height - 6) // 3) if height >= 9 else 0
        self.plot_height = max(0, height - self.has_header - self.legend_rows - 2 * self.has_axes)
        self._measure()
        labels = [label for _, label in self.y_ticks]
        self.gutter = (max(map(len, labels), default=0) + 2) if self.has_axes else 0
        self.plot_width = max(0, width - self.gutter)

    # ------------------------------------------------------------- scaling

    def _measure(self) -> None:
        """Cut the lines to the x range, scale y, and determine the y range."""
        self.pieces: list[tuple[Line, Floats, Floats, Floats | None, Floats | None]] = []
        self.x_range = self.view.x_range
        self.y_range: tuple[float, float] | None = None
        if self.x_range is None:
            self.y_ticks: list[tuple[float, str]] = []
            return
        if self.x_range[1] <= self.x_range[0]:
            room = max(0.5, abs(self.x_range[0]) * 1e-3)
            self.x_range = (self.x_range[0] - room, self.x_range[0] + room)
        heights: list[Floats] = []
        for line in self.lines:
            x = np.asarray(line.x, dtype=np.float64)
            cut = raster.visible_slice(x, *self.x_range)
            y, low, high = (self._scaled(values, cut) for values in (line.y, line.low, line.high))
            assert y is not None
            self.pieces.append((line, x[cut], y, low, high))
            inside = (x[cut] >= self.x_range[0]) & (x[cut] <= self.x_range[1])
            heights += [values[inside] for values in (y, low, high) if values is not None]
        self.y_range = raster.value_range(heights, self.view.log_y, ignore_outliers=self.view.ignore_outliers)
        if self.y_range is not None and self.view.least is not None and not self.view.log_y:
            (lowest, highest), least = self.y_range, self.view.least
            self.y_range = (min(least[0], lowest), max(least[1], highest))
        self.y_ticks = self._y_ticks()

    def _scaled(self, values: Any, cut: slice) -> Floats | None:
        if values is None:
            return None
        floats = raster.as_floats(np.asarray(values)[cut])
        return raster.to_log(floats) if self.view.log_y else floats

    def _y_ticks(self) -> list[tuple[float, str]]:
        if self.y_range is None or not self.has_axes:
            return []
        wanted = min(max(2, self.plot_height // 2), 8)
        low, high = self.y_range
        labels = log_ticks(low, high, wanted) if self.view.log_y else ticks("number", low, high, wanted)
        # Longer numbers would leave no room for the curve.
        return labels if all(2 * len(label) <= self.size.width for _, label in labels) else []

    def row_of(self, y: float) -> int:
        """The plot row of a y value, from the top."""
        assert self.y_range is not None
        low, high = self.y_range
        dots = 4 * self.plot_height
        return round((high - y) / (high - low) * (dots - 1)) // 4

    def column_of(self, x: float) -> int | None:
        """The plot column of an x value, or None outside the view."""
        if self.x_range is None or not self.plot_width:
            return None
        low, high = self.x_range
        if not low <= x <= high:
            return None
        return min(int((x - low) / (high - low) * self.plot_width), self.plot_width - 1)

    # ------------------------------------------------------------- drawing

    @cached_property
    def plot(self) -> tuple[raster.Ints, raster.Ints]:
        """Braille offsets and the index into `styles` of every plot cell."""
        cells = np.zeros((self.plot_height, self.plot_width), dtype=np.int64)
        owner = np.zeros_like(cells)
        if self.x_range is None or self.y_range is None or not cells.size:
            return cells, owner
        edges = np.linspace(*self.x_range, 2 * self.plot_width + 1)
        layers: list[tuple[int, Floats, Floats]] = []
        # Every range is drawn behind every line, whatever the order of the series.
        for index, (_line, x, _y, low, high) in enumerate(self.pieces):
            if low is not None and high is not None and len(x):
                layers.append((2 * index + 1, *raster.column_extremes(x, low, high, edges)))
        for index, (line, x, y, _low, _high) in enumerate(self.pieces):
            if len(x):
                spans = (
                    raster.column_extremes(x, y, y, edges) if line.points else raster.line_spans(x, y, edges)
                )
                layers.append((2 * index + 2, *spans))
        line_dots = np.zeros_like(cells)
        for style, bottom, top in layers:
            packed = raster.braille(raster.dots(bottom, top, *self.y_range, 4 * self.plot_height))
            drawn = packed > 0
            if style % 2:
                cells[drawn] = packed[drawn]
                owner[drawn] = style
                continue
            # A cell has one color: where lines meet, it shows the dots of both in the color of the one with
            # more dots, so that neither seems to end there.
            count = raster.BITS[packed]
            owner[drawn & (count >= line_dots)] = style
            cells[drawn] = np.where(line_dots > 0, cells | packed, packed)[drawn]
            line_dots = np.maximum(line_dots, count)
        return cells, owner

    @cached_property
    def styles(self) -> list[Style]:
        """Style 0 is the grid; series i has 2 i + 1 for its range and 2 i + 2 for its line."""
        base = self.look.base
        styles = [self.look.grid]
        for line in self.lines:
            styles.append(base + Style(color=line.faint or line.color, dim=not line.faint))
            styles.append(base + Style(color=line.color))
        return styles

    def strips(self) -> list[Strip]:
        """All rows, top to bottom, each exactly as wide as the widget."""
        if not self.size.width or not self.size.height:
            return []
        rows = self._header() if self.has_header else []
        if self.x_range is None or self.y_range is None:
            rows += self._empty_rows(self.size.height - len(rows))
        else:
            rows += self._plot_rows()
            if self.has_axes:
                rows += [self._axis_row(), self._label_row()]
        return [Strip(row).adjust_cell_length(self.size.width, self.look.base) for row in rows]

    def _empty_rows(self, count: int) -> list[list[Segment]]:
        rows: list[list[Segment]] = [[] for _ in range(count)]
        if rows:
            text = clip(self.empty, self.size.width - 2)
            left = max(0, (self.size.width - cell_len(text)) // 2)
            rows[count // 2] = [Segment(" " * left, self.look.base), Segment(text, self.look.empty)]
        return rows

    def _plot_rows(self) -> list[list[Segment]]:
        cells, owner = self.plot
        labels = {self.row_of(place): label for place, label in self.y_ticks}
        cross = None if self.view.crosshair is None else self.column_of(self.view.crosshair)
        rows = []
        for index in range(self.plot_height):
            row: list[Segment] = []
            label = labels.get(index)
            if self.gutter:
                text = f"{label or '':>{self.gutter - 2}} " + ("┤" if label is not None else "│")
                row.append(Segment(text, self.look.axis))
            row += self._cells(cells[index], owner[index], label is not None, cross)
            rows.append(row)
        return rows

    def _cells(
        self, codes: raster.Ints, owners: raster.Ints, on_grid: bool, cross: int | None
    ) -> list[Segment]:
        """One row of the plot in as few segments as its colors allow."""
        blank = ord("┈") if on_grid else ord(" ")
        characters = np.where(codes > 0, codes + 0x2800, blank).astype(np.uint32)
        text = characters.tobytes().decode("utf-32-le")
        changes = np.flatnonzero(np.diff(owners)) + 1
        bounds = [0, *changes.tolist(), len(text)]
        segments = []
        for start, end in pairwise(bounds):
            style = self.styles[int(owners[start])]
            if cross is None or not start <= cross < end:
                segments.append(Segment(text[start:end], style))
                continue
            segments.append(Segment(text[start:cross], style))
            under = text[cross] if text[cross] != " " else "│"
            color = style if owners[start] else self.look.axis
            segments.append(Segment(under, color + self.look.crosshair))
            segments.append(Segment(text[cross + 1 : end], style))
        return [segment for segment in segments if segment.text]

    def _x_ticks(self) -> list[tuple[int, str]]:
        assert self.x_range is not None
        columns = []
        for place, label in ticks(self.view.axis, *self.x_range, max(2, self.plot_width // 10)):
            column = self.column_of(place)
            if column is not None:
                columns.append((column, label))
        return columns

    def _axis_row(self) -> list[Segment]:
        glyphs: list[tuple[str, Style]] = [("─", self.look.axis)] * self.plot_width
        for column, _ in self._x_ticks():
            glyphs[column] = ("┬", self.look.axis)
        for _line, x, y, _low, _high in self.pieces:
            for place in x[np.isnan(y)][:2000]:
                hit = self.column_of(float(place))
                if hit is not None:
                    glyphs[hit] = ("×", self.look.gap)
        colors = {marker.color for marker in self.markers}
        styles = {color: self.look.base + Style(color=color) for color in colors}
        for marker in self.markers:
            hit = self.column_of(marker.x)
            if hit is not None:
                glyphs[hit] = (marker.glyph, styles[marker.color])
        row = [Segment(" " * (self.gutter - 1) + "└", self.look.axis)]
        for style, cells in groupby(glyphs, key=itemgetter(1)):
            row.append(Segment("".join(glyph for glyph, _ in cells), style))
        return row

    def _label_row(self) -> list[Segment]:
        text = [" "] * self.size.width
        unit = self.view.x_unit
        if unit and len(unit) + 3 < self.plot_width // 2:
            text[-len(unit) :] = unit
        for column, label in self._x_ticks():
            start = self.gutter + column - len(label) // 2
            start = min(max(start, 0), self.size.width - len(label))
            if start > 0 and text[start - 1] != " ":
                continue
            if all(cell == " " for cell in text[start : start + len(label) + 1]):
                text[start : start + len(label)] = label
        return [Segment("".join(text), self.look.axis)]

    # -------------------------------------------------------------- header

    def _header(self) -> list[list[Segment]]:
        notes = ["log"] if self.view.log_y else []
        if self.view.outliers_note:
            notes.append(self.view.outliers_note)
        title = self.title + (f" ({', '.join(notes)})" if notes else "")
        if self.view.crosshair is not None and self.view.names_x:
            title += f"  at {reading(self.view.axis, self.view.crosshair)}{self._marker_label()}"
        entries, width = self._legend(), self.size.width
        beside = entries[: legend.MAIN] if self.legend_rows else entries
        rows = [legend.title_row(title, beside, width, self.look.title, self.look.base)]
        return rows + legend.behind_rows(entries, width, self.legend_rows, self.look.axis)

    def _marker_label(self) -> str:
        assert self.view.crosshair is not None
        at = self.column_of(self.view.crosshair)
        near = [marker.label for marker in self.markers if marker.label and self.column_of(marker.x) == at]
        return f"  {near[-1]}" if near and at is not None else ""

    def _legend(self) -> list[legend.Entry]:
        """Name, value (newest, or at the crosshair) and style of each named line."""
        entries = []
        for index in self._order():
            line = self.lines[index]
            if line.name and len(line.x):
                entries.append((clip(line.name, 24), self._value(line), self.styles[2 * index + 2]))
        return entries

    def _order(self) -> list[int]:
        """First the lines with a range behind, which are what the chart is about; then from the top down."""
        return sorted(range(len(self.lines)), key=lambda index: (self.lines[index].low is None, -index))

    def _value(self, line: Line) -> str:
        at = len(line.x) - 1
        if self.view.crosshair is not None:
            # Being within a column's width counts as being on it: the crosshair is on columns, not on points.
            slack = (self.x_range[1] - self.x_range[0]) / max(1, self.plot_width) if self.x_range else 0.0
            if not line.x[0] - slack <= self.view.crosshair <= line.x[-1] + slack:
                return "-"
            at = int(np.searchsorted(np.asarray(line.x), self.view.crosshair))
            at = min(max(at, 0), len(line.x) - 1)
            if at and abs(line.x[at - 1] - self.view.crosshair) < abs(line.x[at] - self.view.crosshair):
                at -= 1
        value = float(line.y[at])
        if not math.isfinite(value):
            return not_finite(value)
        text = value_text(value, line.digits) + self.unit
        if self.view.crosshair is not None and line.low is not None and line.high is not None:
            low, high = float(line.low[at]), float(line.high[at])
            if high > low:
                text += f" ({value_text(low, 3)} to {value_text(high, 3)})"
        return text


def value_text(value: float, digits: int = 4) -> str:
    """A value for the legend: fixed decimals at the size of a loss, short forms otherwise."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e4:
        return compact(value, 3)
    if size < 1e-3:
        return f"{value:.2e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{min(decimals, 6)}f}"
