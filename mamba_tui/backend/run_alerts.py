"""Alerts about the run that the console follows, as the user's alerts.toml asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    from core.runs import Run
    from core.runs.alerts import Alert, AlertSettings, AlertWatch
    from core.runs.events import Event


class RunAlerts:
    """Takes the events of the followed run; `tell` gets a sentence, what rings in a terminal, and whether it
    is about a problem.

    What was in the history before the console looked is no news. The trainer itself runs the user's command,
    except when it has died.
    """

    def __init__(self, tell: Callable[[str, str, bool], object]) -> None:
        self._tell = tell
        self._run: Run | None = None
        self._watch: AlertWatch | None = None
        self._settings: AlertSettings | None = None
        self._live = False

    def take(self, run: Run, events: Iterable[Event], *, live: bool) -> None:
        """Take events in their order; only those that are `live` are told."""
        from core.runs.events import StepEvent

        watch = self._watch_of(run)
        self._live = live
        for event in events:
            # A step of the past says nothing about the disk of today.
            if live or not isinstance(event, StepEvent):
                watch.feed(event)

    def died(self, run: Run) -> None:
        """The trainer is gone without a word."""
        self._live = True
        self._watch_of(run).alert("died", "its trainer ended without a message; R in Train resumes it")

    def _watch_of(self, run: Run) -> AlertWatch:
        from core.runs.alerts import AlertSettings, AlertWatch, load_settings

        if self._watch is None or self._run is not run:
            try:
                self._settings = load_settings()
            except UserError as error:
                self._settings = AlertSettings()
                self._tell(f"No alerts: {error}", "", True)
            self._run, self._watch = run, AlertWatch(run.name, run.path, self._settings, self._alert)
        return self._watch

    def _alert(self, alert: Alert) -> None:
        from core.runs.alerts import run_command, terminal_sequence

        assert self._settings is not None
        if not self._live:
            return
        sentence = f"{alert.run}: {alert.message}"
        self._tell(sentence, terminal_sequence(alert, self._settings), alert.kind != "finished")
        if alert.kind == "died":
            run_command(alert, self._settings)
