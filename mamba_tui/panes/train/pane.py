"""Train: watch a run and control it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widget import Widget
from textual.widgets import ContentSwitcher

from mamba_tui import keys
from mamba_tui.backend.console_state import ConsoleState
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.messages import RunListRequested
from mamba_tui.panes.base import Pane, css_beside
from mamba_tui.panes.train.charts_view import ChartsView
from mamba_tui.panes.train.details import DetailsView
from mamba_tui.panes.train.status import status_lines
from mamba_tui.panes.train.steering import Steering
from mamba_tui.panes.train.views import LogView, SamplesView, ViewTabs
from mamba_tui.widgets.text_line import TextLine

VIEWS = ("charts", "samples", "log", "details")


class TrainPane(Pane):
    """Status, and one of four views: charts, samples, log, details."""

    SCOPED_CSS = False
    DEFAULT_CSS = css_beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("train")

    def __init__(self, run_client: RunClient, state: ConsoleState, *, id: str) -> None:
        super().__init__(id=id)
        self.run_client = run_client
        self.state = state
        self.steering = Steering(self, run_client)
        self._arrived = False
        self._could_steer = False

    def compose(self) -> ComposeResult:
        """Status on top, the names of the views, and one of them."""
        first = self.state.view if self.state.view in VIEWS else "charts"
        yield TextLine(id="status")
        yield ViewTabs(VIEWS, first)
        with ContentSwitcher(initial=f"{first}-view", id="views"):
            yield ChartsView(self.run_client, self.state, id="charts-view")
            yield SamplesView(id="samples-view")
            yield LogView(id="log-view")
            yield DetailsView(id="details-view")

    def on_mount(self) -> None:
        """Keep the status line's clock running."""
        self.set_interval(1.0, self._tick)

    def shown(self) -> None:
        """Focus what is on screen."""
        focused = self.screen.focused
        # When it is first mounted, the screen focuses its first chart, which nobody chose.
        if not self._arrived or focused is None or self not in focused.ancestors:
            self._arrived = True
            self.focus_view()
        self.charts.forget_drawn()
        self.run_changed()

    def on_resize(self) -> None:
        """The status lines use all of the width."""
        self._show_status()

    @property
    def charts(self) -> ChartsView:
        """The view with the charts."""
        return self.query_one(ChartsView)

    @property
    def view(self) -> str:
        """charts, samples, log or details."""
        current = self.query_one("#views", ContentSwitcher).current or "charts-view"
        return current.removesuffix("-view")

    def focus_view(self) -> None:
        """Focus what is on screen."""
        if self.view == "charts":
            self.charts.focus_chart()
        else:
            self.query_one(f"#{self.view}-view").focus()

    def bring_up(self, widget: Widget) -> None:
        """Show the view that contains a widget."""
        for view in VIEWS:
            if self.query_one(f"#{view}-view") in widget.ancestors_with_self and view != self.view:
                self.action_view(view)

    def remember(self) -> None:
        """Save the view and the chart options."""
        self.state.view = self.view
        self.charts.remember()

    # ------------------------------------------------------------- showing

    def _tick(self) -> None:
        if self.in_front:
            self._show_status()
            if self.view == "log":
                self._show_log_soon()

    def run_changed(self) -> None:
        """Draw new events."""
        if self.run_client.alive != self._could_steer:
            self._could_steer = self.run_client.alive
            self.refresh_bindings()
        self.charts.follow()
        self._show_status()
        if self.view == "charts":
            self.charts.show()
        elif self.view == "samples":
            history = self.run_client.history
            self.query_one(SamplesView).show(tuple(history.samples) if history else ())
        elif self.view == "log":
            self._show_log_soon()
        else:
            self.query_one(DetailsView).show(self.run_client)

    def _show_status(self) -> None:
        width = max(20, self.size.width - 2)
        self.query_one("#status", TextLine).show(status_lines(self.run_client, width))

    def _show_log_soon(self) -> None:
        self.work(self._show_log(), "log")

    async def _show_log(self) -> None:
        run, history = self.run_client.run, self.run_client.history
        if run is None or history is None:
            self.query_one(LogView).show((), "No run yet.")
            return
        from core.runs import log_tail

        printed = await off_thread(log_tail, run.log_path, 200)
        self.query_one(LogView).show(tuple(history.notes), printed)

    # ------------------------------------------------------------- steering

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that control a run need one that is alive."""
        return self.steering.can(action)

    def action_pause(self) -> None:
        """Pause or continue."""
        self.work(self.steering.pause(), "command-pause")

    def action_command(self, command: str) -> None:
        """Send a command."""
        self.work(self.steering.command(command), f"command-{command}")

    def action_stop(self) -> None:
        """Save, then end."""
        self.work(self.steering.stop(), "stop")

    def action_finish(self) -> None:
        """Cool down, then end."""
        self.work(self.steering.finish(), "finish")

    def action_sample(self) -> None:
        """Ask for a sample."""
        self.work(self.steering.sample(), "sample")

    def action_resume(self) -> None:
        """Resume a run that has ended."""
        self.work(self.steering.resume(), "start")

    # -------------------------------------------------------------- looking

    def action_runs(self) -> None:
        """The runs list."""
        self.post_message(RunListRequested())

    def action_view(self, view: str) -> None:
        """Show one of the views."""
        self.query_one("#views", ContentSwitcher).current = f"{view}-view"
        self.query_one(ViewTabs).active = view
        self.charts.forget_drawn()
        self.focus_view()
        self.run_changed()

    def action_next_view(self) -> None:
        """The view after this one."""
        self.action_view(VIEWS[(VIEWS.index(self.view) + 1) % len(VIEWS)])

    def on_view_tabs_chosen(self, event: ViewTabs.Chosen) -> None:
        """A view was clicked."""
        self.action_view(event.view)
