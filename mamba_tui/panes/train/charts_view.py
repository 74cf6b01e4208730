"""The charts of Train: the loss above, small ones below, the latest sample at the side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget

from core.runs.history import RunHistory
from core.system.files import write_atomic
from mamba_tui import keys
from mamba_tui.backend import history_zoom
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.history_zoom import Zoom
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import ENDED, RunClient
from mamba_tui.messages import Notice, RunListRequested
from mamba_tui.panes.base import work_on
from mamba_tui.panes.train import charts
from mamba_tui.panes.train.chart_window import Window
from mamba_tui.panes.train.details import details
from mamba_tui.panes.train.overlays import Overlays
from mamba_tui.panes.train.views import newest_samples
from mamba_tui.widgets.chart.line_chart import LineChart
from mamba_tui.widgets.text_line import TextLine
from mamba_tui.wording import free_path, state_of

if TYPE_CHECKING:
    from core.runs import Run

SOON = "The first loss comes soon."
EMPTY = "No run yet. Ctrl+R starts one; a lists earlier runs."
# From these heights on there is room for both rows of small charts, for the sample, for any small charts.
TWO_ROWS = 31
WITH_SIDE = 17
# From this width on the side stands beside the charts, with what the run reads and its configuration.
WITH_DETAILS = 150
WITH_SMALL = 13


class ChartsView(Vertical):
    """All charts of the followed run, all showing the same part of it."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("charts")

    def __init__(self, run_client: RunClient, state: ConsoleState, *, id: str) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.state = state
        axis = state.axis if state.axis in charts.AXES else "number"
        self.options = charts.ChartOptions(axis, state.smoothing, state.bits)
        self.overlays = Overlays(run_client)
        self.maximized = ""
        self.selected = state.selected
        self._drawn: object = None
        self._followed: Run | None = None
        self._returns_to: Window | None = None
        self._arrived = False

    def compose(self) -> ComposeResult:
        """The loss, two rows of small charts, and the side."""
        with Vertical(id="charts"):
            yield LineChart("Loss", empty=EMPTY, id="loss")
            with Container(id="small"):
                kinds = {kind.id: kind for kind in charts.KINDS}
                for row, names in charts.ROWS.items():
                    with Horizontal(id=row):
                        for kind in map(kinds.__getitem__, names):
                            yield charts.chart_of(kind)
        with VerticalScroll(id="side", can_focus=False):
            yield TextLine(id="latest")
            yield TextLine(id="details")

    def on_mount(self) -> None:
        """Restore the last choices."""
        self.loss.log_y = self.state.log_y
        if self.state.chart in {kind.id for kind in charts.KINDS}:
            self.maximize(self.state.chart)

    @property
    def loss(self) -> LineChart:
        """The main chart."""
        return self.query_one("#loss", LineChart)

    def on_resize(self) -> None:
        """A high screen has two rows of small charts; on a low one the loss remains longest."""
        width, height = self.size
        self.set_class(width >= WITH_DETAILS, "-details")
        self.set_class(height >= TWO_ROWS, "-rows")
        self.set_class(height < WITH_SIDE, "-low")
        self.set_class(height < WITH_SMALL, "-lowest")
        self._drawn = None
        self.call_after_refresh(self.show)  # there may be room for more now

    def remember(self) -> None:
        """Save the chart options."""
        self.state.axis, self.state.smoothing = self.options.axis, self.options.smoothing
        self.state.bits, self.state.chart = self.options.bits, self.maximized
        self.state.log_y, self.state.selected = self.loss.log_y, self.selected
        self._keep_window()

    def _keep_window(self) -> None:
        """Save which part of the followed run is shown; until it has been restored, the saved one stays."""
        if self._followed is not None and self._returns_to is None:
            window = Window.of(self.loss, self.options.axis)
            window.keep(self.state.windows, self._followed.name)

    def focus_chart(self) -> None:
        """Focus the selected chart."""
        self._arrived = True
        chosen = [chart for chart in self.query(LineChart) if chart.id == self.selected]
        shown = self.selected if chosen and self._can_be_chosen(chosen[0]) else "loss"
        self.query_one(f"#{self.maximized or shown}").focus()

    # ------------------------------------------------------------- showing

    def follow(self) -> None:
        """Another run may be followed: show the part of it that was shown last time."""
        if self.run_client.run is self._followed:
            return
        self._keep_window()
        self._followed = self.run_client.run
        for chart in self.query(LineChart):
            chart.view, chart.follow, chart.crosshair = None, True, None
        name = self._followed.name if self._followed is not None else ""
        self._returns_to = Window.read(self.state.windows.get(name))

    def forget_drawn(self) -> None:
        """Draw again even if nothing is new."""
        self._drawn = None

    def show(self) -> None:
        """Draw the followed run, if there is anything new about it."""
        history = self.run_client.history
        main = self.loss
        names = self.overlays.wanted(self.state.overlays)
        if names is not None:
            work_on(self, self._load_overlays(names), "overlays")
        if history is None:
            main.empty = EMPTY
            main.set_data([])
            return
        run_state = state_of(self.run_client)
        zoom = self._zoom(history)
        state = (
            history,
            zoom,
            zoom and zoom.table,
            history.version,
            run_state,
            self.run_client.caught_up,
            self.options,
            self.app.theme,
            tuple(self.overlays.histories),
        )
        if state == self._drawn:
            return
        self._drawn = state
        colors = charts.Colors(self.app.theme_variables)
        marks = charts.markers(history, self.options, colors)
        rare = [mark for mark in marks if mark.glyph not in charts.FREQUENT]
        lines = []
        for index, (name, other) in enumerate(self.overlays.histories.items()):
            lines += charts.overlay_line(name, other, self.options, colors.behind(index))
        rows = history if zoom is None else history_zoom.spliced(history, zoom)
        main.title = charts.loss_title(self.options)
        over = state_of(self.run_client) in ENDED
        main.empty = "No step was taken. F2 changes the configuration, 3 shows the log." if over else SOON
        for chart in self.query(LineChart):
            chart.x_unit = charts.AXIS_UNITS[self.options.axis]
            chart.axis = self.options.axis if self.options.axis in ("duration", "clock") else "number"  # type: ignore[assignment]
        main.set_data(lines + charts.loss_lines(rows, self.options, colors), marks)
        for kind in charts.KINDS[1:]:
            chart = self.query_one(f"#{kind.id}", LineChart)
            lines = charts.single_line(rows, kind, self.options, colors)
            # A CPU has no device memory to show, so the others get the room.
            chart.set_class(kind.id in charts.ROWS["device"] and not lines, "-nothing")
            if self._has_room(chart):
                # Every checkpoint on every chart would hide the axes.
                chart.set_data(lines, marks if self.maximized else rare)
        # Six in one row would be too narrow for axes.
        full = not self.query_one("#memory").has_class("-nothing")
        self.query_one("#device").set_class(full, "-full")
        self._show_side()
        # The end of the run must be known first, because a window that follows depends on it.
        if self._returns_to is not None and self.run_client.caught_up and history.steps.count:
            window, self._returns_to = self._returns_to, None
            if window.axis == self.options.axis:
                window.show(main)

    def _show_side(self) -> None:
        wide = self.has_class("-details")
        self.query_one("#latest", TextLine).show(
            newest_samples(self.run_client, 3 if wide else 1), layout=True
        )
        if wide:
            content = details(self.run_client, max(30, self.query_one("#side").size.width - 2))
            self.query_one("#details", TextLine).show(content, layout=True)

    def _zoom(self, history: RunHistory) -> Zoom | None:
        """The window's rows in full resolution if the history's are too coarse; requested if they are
        missing.
        """
        client = self.run_client
        zoom = history_zoom.wanted(history, client.zoom, self.loss.view, self.options.axis)
        if zoom is not None and zoom is not client.zoom:
            if not client.caught_up:
                return None
            work_on(self, self._read_zoom(zoom), "zoom")
        client.zoom = zoom
        return zoom

    async def _read_zoom(self, zoom: Zoom) -> None:
        if await self.run_client.read_zoom(zoom):
            self.show()

    def _has_room(self, chart: LineChart) -> bool:
        """Whether one of the small charts is visible at this size."""
        row = chart.parent
        return chart.display and isinstance(row, Widget) and row.display and self.query_one("#small").display

    def _say(self, text: str) -> None:
        self.post_message(Notice(text))

    async def _load_overlays(self, names: Sequence[str]) -> None:
        await self.overlays.load(names)
        self._drawn = None
        self.show()

    def on_line_chart_view_changed(self, event: LineChart.ViewChanged) -> None:
        """Make all charts show the same part of the run."""
        self._returns_to = None
        source = event.chart
        for chart in self.query(LineChart):
            if chart is not source:
                chart.follow, chart.view, chart.crosshair = source.follow, source.view, source.crosshair
        history = self.run_client.history
        if history is not None and history.steps.stride > 1:
            self.show()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """The focused chart is the selected one; the screen's own first choice doesn't count."""
        if self._arrived and isinstance(event.widget, LineChart) and event.widget.id:
            self.selected = event.widget.id

    # ------------------------------------------------------------- looking

    def action_overlay(self) -> None:
        """Choose other runs to draw behind this one."""
        self.post_message(RunListRequested())

    def maximize(self, chart: str) -> None:
        """Show one chart alone; "" shows all."""
        self.maximized = chart
        self.set_class(bool(chart), "-maximized")
        for kind in charts.KINDS:
            widget = self.query_one(f"#{kind.id}", LineChart)
            # None leaves the decision to the style sheet.
            if chart:
                widget.styles.display = "block" if kind.id == chart else "none"
            else:
                widget.styles.clear_rule("display")
            widget.names_x = kind.id == (chart or "loss")
        for row, names in charts.ROWS.items():
            self.query_one(f"#{row}").set_class(bool(chart) and chart not in names, "-away")
        self.query_one("#small").set_class(chart == "loss", "-away")
        self._drawn = None

    def _can_be_chosen(self, chart: LineChart) -> bool:
        """A chart alone can be any chart that has something to show."""
        if self.maximized:
            return not chart.has_class("-nothing")
        return chart.id == "loss" or self._has_room(chart)

    def _focused_chart(self) -> str:
        focused = self.screen.focused
        return focused.id or "loss" if isinstance(focused, LineChart) else "loss"

    def action_maximize(self) -> None:
        """One chart alone, or all."""
        self.maximize("" if self.maximized else self._focused_chart())
        self.show()

    def action_next_chart(self, by: int) -> None:
        """Select the next chart, also while one is alone."""
        names = [chart.id or "" for chart in self.query(LineChart) if self._can_be_chosen(chart)]
        current = self.maximized or self._focused_chart()
        at = names.index(current) if current in names else 0
        following = names[(at + by) % len(names)]
        if self.maximized:
            self.maximize(following)
        self.query_one(f"#{following}").focus()
        self.show()

    def _choose(self, **changes: object) -> None:
        self.options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]
        self.show()

    def action_smooth(self, by: int) -> None:
        """More or less smoothing."""
        level = min(max(self.options.smoothing + by, 0), len(charts.SMOOTHING) - 1)
        self._choose(smoothing=level)

    def action_axis(self) -> None:
        """The next x axis."""
        at = charts.AXES.index(self.options.axis)
        axis = charts.AXES[(at + 1) % len(charts.AXES)]
        for chart in self.query(LineChart):
            chart.view, chart.crosshair, chart.follow = None, None, True
        self._choose(axis=axis)
        self._say(f"x axis: {charts.AXIS_NAMES[axis]}")

    def action_unit(self) -> None:
        """Nats per token or bits per byte."""
        if self.run_client.history is None or self.run_client.history.last_evaluation is None:
            self._say("bits per byte are known after the first evaluation")
            return
        self._choose(bits=not self.options.bits)

    def action_write_file(self) -> None:
        """Write the curves as CSV."""
        work_on(self, self._write_file(), "write")

    async def _write_file(self) -> None:
        if self.run_client.history is None or self.run_client.run is None:
            return
        path, text = (
            free_path(Path(f"{self.run_client.run.name}.csv")),
            charts.csv_text(self.run_client.history),
        )
        await off_thread(lambda: write_atomic(path, text.encode(), private=False))
        self._say(f"Wrote {path}")
