"""LineChart: series in braille on Textual's line API, fast enough to redraw while a model trains.

The chart knows nothing about runs. It is given `Line`s and `Marker`s, and has a view of them: linear or
logarithmic y, a zoomed or a following x range, and a crosshair. `ChartFrame` draws; `LineChart` is the widget
with its keys and mouse.
"""

from __future__ import annotations

import math
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from mamba_tui import keys
from mamba_tui.widgets.chart.axes import Axis
from mamba_tui.widgets.chart.frame import ChartFrame, Line, Look, Marker, View, x_extent

__all__ = ["Line", "LineChart", "Marker"]

ZOOM_STEP = 1.6
PAN_STEP = 0.15


class LineChart(Widget, can_focus=True):
    """A chart of several lines over one x axis."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "line-chart--axis",
        "line-chart--grid",
        "line-chart--title",
        "line-chart--crosshair",
        "line-chart--empty",
        "line-chart--gap",
    }
    DEFAULT_CSS = """
    LineChart { height: 1fr; width: 1fr; background: $background; }
    LineChart .line-chart--axis { color: $text-muted; background: $background; }
    LineChart .line-chart--grid { color: $line; background: $background; }
    LineChart .line-chart--title { color: $foreground; background: $background; text-style: bold; }
    LineChart:focus .line-chart--title { color: $accent; }
    LineChart .line-chart--crosshair { background: $panel; }
    LineChart .line-chart--empty { color: $text-muted; background: $background; }
    LineChart .line-chart--gap { color: $error; background: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("chart")

    log_y = reactive(False)
    ignore_outliers = reactive(False)
    axis: reactive[Axis] = reactive("number")
    follow = reactive(True)
    view: reactive[tuple[float, float] | None] = reactive(None)
    crosshair: reactive[float | None] = reactive(None)

    class ViewChanged(Message):
        """The x range or the crosshair moved, by key or by mouse."""

        def __init__(self, chart: LineChart) -> None:
            super().__init__()
            self.chart = chart

        @property
        def control(self) -> LineChart:
            """The chart that changed."""
            return self.chart

    def __init__(
        self,
        title: str = "",
        *,
        unit: str = "",
        empty: str = "no data yet",
        least: tuple[float, float] | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self.title = title
        self.unit = unit
        self.empty = empty
        self.least = least
        self.names_x = True
        self.x_unit = ""
        self.outliers_by_default = True
        self._lines: list[Line] = []
        self._markers: list[Marker] = []
        self._frame: ChartFrame | None = None
        self._look: Look | None = None
        self._strips: list[Strip] = []
        self._drag: tuple[int, tuple[float, float]] | None = None

    # ---------------------------------------------------------------- data

    def set_data(self, lines: list[Line], markers: list[Marker] | None = None) -> None:
        """Show these lines (drawn in order, the last on top) and markers."""
        previous = self.extent
        self._lines = lines
        self._markers = markers or []
        view = self.view
        if view is not None and self.follow and previous is not None and self.extent is not None:
            shift = self.extent[1] - previous[1]
            # A view that was following moves along; set without a watcher, because the refresh is below.
            self.set_reactive(LineChart.view, (view[0] + shift, view[1] + shift))
        self.redraw()

    @property
    def extent(self) -> tuple[float, float] | None:
        """Smallest and largest x of all lines."""
        return x_extent(self._lines)

    @property
    def shown(self) -> tuple[float, float] | None:
        """The x range on screen."""
        return self.view or self.extent

    def redraw(self) -> None:
        """Forget the drawn frame."""
        self._frame = None
        self.refresh()

    def watch_log_y(self) -> None:
        """Redraw; so do the following watchers."""
        self.redraw()

    def watch_ignore_outliers(self) -> None:
        """Redraw."""
        self.redraw()

    def watch_axis(self) -> None:
        """Redraw."""
        self.redraw()

    def watch_view(self) -> None:
        """Redraw."""
        self.redraw()

    def watch_crosshair(self) -> None:
        """Redraw."""
        self.redraw()

    def on_resize(self) -> None:
        """Redraw at the new size."""
        self.redraw()

    def notify_style_update(self) -> None:
        """A change of theme or focus changes colors."""
        super().notify_style_update()
        self._frame = self._look = None

    # ------------------------------------------------------------- drawing

    def look(self) -> Look:
        """The current theme's styles.

        Textual forgets its own at every refresh, and computing them takes as long as drawing the chart.
        """
        if self._look is None:
            style = self.get_component_rich_style
            self._look = Look(
                base=self.rich_style,
                axis=style("line-chart--axis"),
                grid=style("line-chart--grid"),
                title=style("line-chart--title"),
                crosshair=Style(bgcolor=style("line-chart--crosshair").bgcolor),
                empty=style("line-chart--empty"),
                gap=style("line-chart--gap"),
            )
        return self._look

    def render_line(self, y: int) -> Strip:
        """One row of the chart, from the frame drawn for this size, data and view."""
        size = self.size
        if self._frame is None or self._frame.size != size:
            self._frame = self._draw(size)
            self._strips = self._frame.strips()
        if y < len(self._strips):
            return self._strips[y]
        return Strip([Segment(" " * size.width, self.look().base)], size.width)

    def _draw(self, size: Size) -> ChartFrame:
        view = View(
            x_range=self.shown,
            axis=self.axis,
            log_y=self.log_y,
            ignore_outliers=self.ignore_outliers,
            crosshair=self.crosshair,
            least=self.least,
            names_x=self.names_x,
            outliers_note=self._outliers_note(),
            x_unit=self.x_unit,
        )
        return ChartFrame(
            size, self.title, self.unit, self.empty, self._lines, self._markers, view, self.look()
        )

    def _outliers_note(self) -> str:
        """For the title, if outliers aren't treated as usual."""
        if self.outliers_by_default and self.ignore_outliers:
            return "without outliers"
        return "" if self.outliers_by_default or self.ignore_outliers else "with outliers"

    # ---------------------------------------------------------------- view

    def set_view(self, x_range: tuple[float, float] | None, *, follow: bool | None = None) -> None:
        """Show an x range (None for everything) and tell other charts to follow."""
        if x_range is not None:
            x_range = self._clamped(x_range)
        if follow is not None:
            self.follow = follow
        self.view = x_range
        self.post_message(self.ViewChanged(self))

    def _clamped(self, x_range: tuple[float, float]) -> tuple[float, float] | None:
        extent = self.extent
        if extent is None:
            return None
        span = x_range[1] - x_range[0]
        whole = extent[1] - extent[0]
        if not math.isfinite(span) or span >= whole:
            return None
        smallest = max(whole * 1e-6, 1e-9)
        span = max(span, smallest)
        start = min(max(x_range[0], extent[0]), extent[1] - span)
        return start, start + span

    def zoom(self, factor: float, around: float | None = None) -> None:
        """Show `1/factor` of the range around a point, by default the crosshair or the newest point."""
        shown = self.shown
        if shown is None or shown[1] <= shown[0]:
            return
        if around is None:
            inside = self.crosshair is not None and shown[0] <= self.crosshair <= shown[1]
            around = self.crosshair if inside else shown[1] if self.follow else sum(shown) / 2
        assert around is not None
        low = around - (around - shown[0]) / factor
        high = around + (shown[1] - around) / factor
        self.set_view((low, high))

    def pan(self, share: float) -> None:
        """Move the view by a share of its width; at the newest point it follows again."""
        shown, extent = self.shown, self.extent
        if shown is None or extent is None or self.view is None:
            return
        shift = (shown[1] - shown[0]) * share
        at_end = shown[1] + shift >= extent[1]
        self.set_view((shown[0] + shift, shown[1] + shift), follow=at_end)

    def move_crosshair(self, columns: int) -> None:
        """Move the crosshair by columns of dots."""
        shown = self.shown
        if self.crosshair is None or shown is None or self._frame is None:
            return
        step = (shown[1] - shown[0]) / max(1, self._frame.plot_width - 1)
        self._set_crosshair(min(max(self.crosshair + columns * step, shown[0]), shown[1]))

    def _set_crosshair(self, x: float | None) -> None:
        self.crosshair = x
        self.post_message(self.ViewChanged(self))

    # ------------------------------------------------------------- actions

    def action_zoom(self, direction: int) -> None:
        """Zoom in (1) or out (-1)."""
        self.zoom(ZOOM_STEP if direction > 0 else 1 / ZOOM_STEP)

    def action_left_right(self, direction: int) -> None:
        """Move the crosshair if there is one, otherwise the view."""
        if self.crosshair is not None:
            self.move_crosshair(direction)
        else:
            self.pan(direction * PAN_STEP)

    def action_pan(self, direction: int) -> None:
        """Move the view."""
        self.pan(direction * PAN_STEP)

    def action_crosshair(self) -> None:
        """Switch the crosshair on, at the newest visible point, or off."""
        if self.crosshair is not None:
            self._set_crosshair(None)
        elif self.shown is not None:
            self._set_crosshair(self.shown[1])

    def action_reset(self) -> None:
        """Show everything again."""
        self.crosshair = None
        self.set_view(None, follow=True)

    def action_follow(self) -> None:
        """Keep the newest point in view, or stop doing so."""
        shown, extent = self.shown, self.extent
        if self.view is None or shown is None or extent is None:
            self.set_view(self.view, follow=not self.follow)
        elif self.follow:
            self.set_view(self.view, follow=False)
        else:
            span = shown[1] - shown[0]
            self.set_view((extent[1] - span, extent[1]), follow=True)

    def action_log_y(self) -> None:
        """Switch between a linear and a logarithmic y axis."""
        self.log_y = not self.log_y

    def action_outliers(self) -> None:
        """Fit the y axis to all values, or to all but the outermost hundredths."""
        self.ignore_outliers = not self.ignore_outliers

    # --------------------------------------------------------------- mouse

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in at the pointer."""
        event.stop()
        self.zoom(ZOOM_STEP, self._x_at(event.x))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out at the pointer."""
        event.stop()
        self.zoom(1 / ZOOM_STEP, self._x_at(event.x))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """A press starts a drag, or sets the crosshair if the mouse doesn't move."""
        shown = self.shown
        if shown is not None:
            self._drag = (event.x, shown)
            self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag the view along."""
        if self._drag is None or self._frame is None:
            return
        start, shown = self._drag
        shift = (start - event.x) / max(1, self._frame.plot_width) * (shown[1] - shown[0])
        if shift and self.view is not None and self.extent is not None:
            self.set_view((shown[0] + shift, shown[1] + shift), follow=shown[1] + shift >= self.extent[1])

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """End a drag; a click in place sets the crosshair, a click on it removes it."""
        if self._drag is None:
            return
        start, _ = self._drag
        self._drag = None
        self.release_mouse()
        if abs(event.x - start) <= 0 and self._frame is not None:
            x = self._x_at(event.x)
            same = self.crosshair is not None and self._frame.column_of(self.crosshair) == self._column(
                event.x
            )
            self._set_crosshair(None if same else x)

    def _column(self, x: int) -> int:
        assert self._frame is not None
        return min(max(x - self._frame.gutter, 0), max(0, self._frame.plot_width - 1))

    def _x_at(self, x: int) -> float | None:
        shown = self.shown
        if self._frame is None or shown is None:
            return None
        return shown[0] + (self._column(x) + 0.5) / max(1, self._frame.plot_width) * (shown[1] - shown[0])
