"""Train: watch a run and steer it."""

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
from textual.widgets import ContentSwitcher

from core.runs.history import RunHistory
from mamba_tui import keys
from mamba_tui.backend import history_zoom
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.history_zoom import Zoom
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import ENDED, RunClient
from mamba_tui.messages import RunListRequested
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.train import charts
from mamba_tui.panes.train.chart_window import Window
from mamba_tui.panes.train.overlays import Overlays
from mamba_tui.panes.train.status import status_lines
from mamba_tui.panes.train.steering import Steering
from mamba_tui.panes.train.views import LogView, SamplesView, newest_sample
from mamba_tui.widgets.chart.line_chart import LineChart
from mamba_tui.widgets.safe_text import safe
from mamba_tui.widgets.text_line import TextLine
from mamba_tui.wording import free_path, state_of

if TYPE_CHECKING:
    from core.runs import Run

VIEWS = ("charts", "samples", "log")
SOON = "The first loss comes soon."
# From this height on there is room for all charts.
TWO_ROWS = 34
EMPTY = "No run yet. Ctrl+R starts one; a lists earlier runs."


class TrainPane(Pane):
    """Status, charts, samples, log."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("train")

    def __init__(self, session: RunClient, state: ConsoleState, *, id: str) -> None:
        super().__init__(id=id)
        self.session = session
        self.state = state
        axis = state.axis if state.axis in charts.AXES else "number"
        self.options = charts.ChartOptions(axis, state.smoothing, state.bits)
        self.steering = Steering(self, session)
        self.overlays = Overlays(session)
        self.maximised = ""
        self._drawn: object = None
        self._followed: Run | None = None
        self._returns_to: Window | None = None
        self.selected = state.selected
        self._arrived = False
        self._could_steer = False

    def compose(self) -> ComposeResult:
        """Status on top, one of three views below."""
        yield TextLine(id="status")
        first = self.state.view if self.state.view in VIEWS else "charts"
        with ContentSwitcher(initial=f"{first}-view", id="views"):
            with Vertical(id="charts-view"):
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
            yield SamplesView(id="samples-view")
            yield LogView(id="log-view")

    def on_mount(self) -> None:
        """Restore what was chosen last time, keep the clock in the status line going."""
        self.query_one("#loss", LineChart).log_y = self.state.log_y
        if self.state.chart in {kind.id for kind in charts.KINDS}:
            self.maximise(self.state.chart)
        self.set_interval(1.0, self._tick)

    def shown(self) -> None:
        """Charts have the keys."""
        focused = self.screen.focused
        # When it is first mounted the screen gives the keys to its first chart, which nobody chose.
        if not self._arrived or focused is None or self not in focused.ancestors:
            self._arrived = True
            self.focus_view()
        self._drawn = None
        self.session_changed()

    def on_resize(self) -> None:
        """The status lines use all of the width; a high screen has two rows of small charts."""
        self.set_class(self.size.height >= TWO_ROWS, "-rows")
        self._show_status()

    @property
    def view(self) -> str:
        """charts, samples or log."""
        current = self.query_one("#views", ContentSwitcher).current or "charts-view"
        return current.removesuffix("-view")

    def focus_view(self) -> None:
        """Give the keys to what is on screen."""
        if self.view == "charts":
            chosen = [chart for chart in self.query(LineChart) if chart.id == self.selected]
            shown = self.selected if chosen and self._can_be_chosen(chosen[0]) else "loss"
            self.query_one(f"#{self.maximised or shown}").focus()
        else:
            self.query_one(f"#{self.view}-view").focus()

    def remember(self) -> None:
        """Keep the chart options."""
        self.state.axis, self.state.smoothing = self.options.axis, self.options.smoothing
        self.state.bits, self.state.chart = self.options.bits, self.maximised
        self.state.log_y = self.query_one("#loss", LineChart).log_y
        self.state.view, self.state.selected = self.view, self.selected
        self._keep_window()

    def _keep_window(self) -> None:
        """Keep what part of the followed run is shown; before it came back, what was kept stays."""
        if self._followed is not None and self._returns_to is None:
            window = Window.of(self.query_one("#loss", LineChart), self.options.axis)
            window.keep(self.state.windows, self._followed.name)

    # ------------------------------------------------------------- showing

    def _tick(self) -> None:
        if self.in_front:
            self._show_status()
            if self.view == "log":
                self._show_log_soon()

    def session_changed(self) -> None:
        """New events: draw what is on screen."""
        if self.session.alive != self._could_steer:
            self._could_steer = self.session.alive
            self.refresh_bindings()
        if self.session.run is not self._followed:
            self._keep_window()
            self._followed = self.session.run
            for chart in self.query(LineChart):
                chart.view, chart.follow, chart.crosshair = None, True, None
            name = self._followed.name if self._followed is not None else ""
            self._returns_to = Window.read(self.state.windows.get(name))
        self._show_status()
        if self.view == "charts":
            self._show_charts()
        elif self.view == "samples":
            history = self.session.history
            self.query_one(SamplesView).show(tuple(history.samples) if history else ())
        else:
            self._show_log_soon()

    def _show_status(self) -> None:
        width = max(20, self.size.width - 2)
        self.query_one("#status", TextLine).show(status_lines(self.session, width))

    def _show_charts(self) -> None:
        history = self.session.history
        main = self.query_one("#loss", LineChart)
        names = self.overlays.wanted(self.state.overlays)
        if names is not None:
            self.work(self._load_overlays(names), "overlays")
        if history is None:
            main.empty = EMPTY
            main.set_data([])
            return
        run_state = state_of(self.session)
        zoom = self._zoom(history)
        state = (
            history,
            zoom,
            zoom and zoom.table,
            history.version,
            run_state,
            self.session.caught_up,
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
            lines += charts.overlay_line(name, other, self.options, colors.series(2 + index))
        rows = history if zoom is None else history_zoom.spliced(history, zoom)
        main.title = charts.loss_title(self.options)
        over = state_of(self.session) in ENDED
        main.empty = "No step was taken. F2 changes the configuration, v shows the log." if over else SOON
        for chart in self.query(LineChart):
            chart.axis = self.options.axis if self.options.axis in ("duration", "clock") else "number"  # type: ignore[assignment]
        main.set_data(lines + charts.loss_lines(rows, self.options, colors), marks)
        for kind in charts.KINDS[1:]:
            chart = self.query_one(f"#{kind.id}", LineChart)
            lines = charts.single_line(rows, kind, self.options, colors)
            # A CPU has no device memory to show: the room goes to the others.
            chart.set_class(kind.id in charts.ROWS["device"] and not lines, "-nothing")
            if self._has_room(chart):
                # Every checkpoint on every chart would hide the axes.
                chart.set_data(lines, marks if self.maximised else rare)
        # Six in one row would be too narrow for axes.
        full = not self.query_one("#memory").has_class("-nothing")
        self.query_one("#device").set_class(full, "-full")
        self.query_one("#latest", TextLine).show(newest_sample(self.session), layout=True)
        # The end of the run must be known first: a window that follows hangs on it.
        if self._returns_to is not None and self.session.caught_up and history.steps.count:
            window, self._returns_to = self._returns_to, None
            if window.axis == self.options.axis:
                window.show(main)

    def _zoom(self, history: RunHistory) -> Zoom | None:
        """The rows of the window in full, where the history's are too coarse; asked for where missing."""
        client, view = self.session, self.query_one("#loss", LineChart).view
        zoom = history_zoom.wanted(history, client.zoom, view, self.options.axis)
        if zoom is not None and zoom is not client.zoom:
            if not client.caught_up:
                return None
            self.work(self._read_zoom(zoom), "zoom")
        client.zoom = zoom
        return zoom

    async def _read_zoom(self, zoom: Zoom) -> None:
        if await self.session.read_zoom(zoom):
            self.session_changed()

    def _has_room(self, chart: LineChart) -> bool:
        """Whether a chart of the small ones is on screen at this size."""
        row = chart.parent
        return chart.display and isinstance(row, Widget) and row.display and self.query_one("#small").display

    def _show_log_soon(self) -> None:
        self.work(self._show_log(), "log")

    async def _show_log(self) -> None:
        run, history = self.session.run, self.session.history
        if run is None or history is None:
            self.query_one(LogView).show((), "No run yet.")
            return
        from core.runs import log_tail

        printed = await off_thread(log_tail, run.log_path, 200)
        self.query_one(LogView).show(tuple(history.notes), printed)

    def on_line_chart_view_changed(self, event: LineChart.ViewChanged) -> None:
        """All charts show the same part of the run."""
        self._returns_to = None
        source = event.chart
        for chart in self.query(LineChart):
            if chart is not source:
                chart.follow, chart.view, chart.crosshair = source.follow, source.view, source.crosshair
        history = self.session.history
        if history is not None and history.steps.stride > 1 and self.view == "charts":
            self._show_charts()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """The chart that has the keys is the chosen one."""
        if self._arrived and isinstance(event.widget, LineChart) and event.widget.id:
            self.selected = event.widget.id

    # ------------------------------------------------------------- steering

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that steer need a run that can be steered."""
        return self.steering.can(action)

    def action_pause(self) -> None:
        """Pause, or go on."""
        self.work(self.steering.pause(), "command-pause")

    def action_command(self, command: str) -> None:
        """Send a command."""
        self.work(self.steering.command(command), f"command-{command}")

    def action_stop(self) -> None:
        """Save, then end."""
        self.work(self.steering.stop(), "stop")

    def action_sample(self) -> None:
        """Ask for a sample."""
        self.work(self.steering.sample(), "sample")

    def action_resume(self) -> None:
        """Start an ended run again."""
        self.work(self.steering.resume(), "start")

    # -------------------------------------------------------------- looking

    def action_runs(self) -> None:
        """The runs list."""
        self.post_message(RunListRequested())

    action_overlay = action_runs

    async def _load_overlays(self, names: Sequence[str]) -> None:
        await self.overlays.load(names)
        self._drawn = None
        if self.in_front:
            self.session_changed()

    def action_next_view(self) -> None:
        """Charts, samples, log."""
        following = VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)]
        self.query_one("#views", ContentSwitcher).current = f"{following}-view"
        self._drawn = None
        self.focus_view()
        self.session_changed()

    def maximise(self, chart: str) -> None:
        """Show one chart alone; "" shows all."""
        self.maximised = chart
        self.set_class(bool(chart), "-maximised")
        for kind in charts.KINDS:
            widget = self.query_one(f"#{kind.id}", LineChart)
            # None gives the decision back to the style sheet.
            if chart:
                widget.styles.display = "block" if kind.id == chart else "none"
            else:
                widget.styles.clear_rule("display")
        for row, names in charts.ROWS.items():
            self.query_one(f"#{row}").set_class(bool(chart) and chart not in names, "-away")
        self.query_one("#small").set_class(chart == "loss", "-away")
        self._drawn = None

    def _can_be_chosen(self, chart: LineChart) -> bool:
        """Alone every chart can be seen that has something to show."""
        if self.maximised:
            return not chart.has_class("-nothing")
        return chart.id == "loss" or self._has_room(chart)

    def _focused_chart(self) -> str:
        focused = self.screen.focused
        return focused.id or "loss" if isinstance(focused, LineChart) else "loss"

    def action_maximise(self) -> None:
        """One chart alone, or all."""
        if self.view == "charts":
            self.maximise("" if self.maximised else self._focused_chart())
            self.session_changed()

    def action_next_chart(self, by: int) -> None:
        """The next chart, also while one is alone."""
        if self.view != "charts":
            return
        names = [chart.id or "" for chart in self.query(LineChart) if self._can_be_chosen(chart)]
        current = self.maximised or self._focused_chart()
        at = names.index(current) if current in names else 0
        following = names[(at + by) % len(names)]
        if self.maximised:
            self.maximise(following)
        self.query_one(f"#{following}").focus()
        self.session_changed()

    def _choose(self, **changes: object) -> None:
        self.options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]
        self.session_changed()

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
        self.say(f"x axis: {charts.AXIS_NAMES[axis]}")

    def action_unit(self) -> None:
        """Nats per token or bits per byte."""
        if self.session.history is None or self.session.history.last_evaluation is None:
            self.say("bits per byte are known from the first evaluation on")
            return
        self._choose(bits=not self.options.bits)

    def action_write_file(self) -> None:
        """Write the curves as CSV."""
        self.work(self._write_file(), "write")

    async def _write_file(self) -> None:
        if self.session.history is None or self.session.run is None:
            return
        path = free_path(Path(f"{self.session.run.name}.csv"))
        await off_thread(path.write_text, charts.csv_text(self.session.history))
        self.say(safe(f"wrote {path}").plain)
