"""What every pane can do."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.theme import Theme
from textual.widget import Widget

from core.errors import UserError
from mamba_tui.messages import Notice


def css_beside(module: str) -> str:
    """The .tcss file beside a module. Textual supports CSS_PATH only for apps and screens."""
    return Path(module).with_suffix(".tcss").read_text(encoding="utf-8")


def work_on(widget: Widget, coroutine: Coroutine[Any, Any, None], group: str) -> None:
    """Run a coroutine in the background for a widget; another one of the same group cancels it."""
    widget.run_worker(_guarded(widget, coroutine), group=group, exclusive=True, exit_on_error=True)


async def _guarded(widget: Widget, coroutine: Coroutine[Any, Any, None]) -> None:
    """Await, and show errors that aren't bugs as notices."""
    try:
        await coroutine
    except (UserError, OSError) as error:
        widget.post_message(Notice(error, problem=True))
    except NoMatches:
        # Near the end widgets disappear one by one, and work that was waiting finds them gone.
        if widget.app.is_running:
            raise


class Pane(Vertical):
    """A tab's content. It knows the objects it was given, but not the app or other panes."""

    SCOPED_CSS = False

    DEFAULT_CSS = """
    Pane { height: 1fr; width: 1fr; }
    """

    def on_mount(self) -> None:
        """Listen to changes of theme."""
        self.app.theme_changed_signal.subscribe(self, self._theme_changed)

    def _theme_changed(self, _theme: Theme) -> None:
        if self.in_front:
            self.theme_changed()

    @property
    def in_front(self) -> bool:
        """Whether this tab is the visible one."""
        return self.is_attached and self.display and self.app.is_running

    def say(self, text: object, *, problem: bool = False) -> None:
        """Show a message to the user."""
        self.post_message(Notice(text, problem))

    async def ask(self, question: Screen[str | None]) -> str | None:
        """Show a dialog and wait for its answer; None if it was closed."""
        return await self.app.push_screen_wait(question)

    def work(self, coroutine: Coroutine[Any, Any, None], group: str) -> None:
        """Run a coroutine in the background; another one of the same group cancels it."""
        work_on(self, coroutine, group)

    def target(self, selector: str) -> Widget:
        """The part of this pane that handles a command's keys, shown and focused if possible."""
        widgets = [self] if type(self).__name__ == selector else list(self.query(selector))
        widget: Widget = widgets[0]
        focused = self.screen.focused
        if focused is not None and isinstance(focused, type(widget)):
            widget = focused  # if there are several charts or texts, the focused one
        self.bring_up(widget)
        if widget.focusable:
            widget.focus()
        return widget

    def bring_up(self, widget: Widget) -> None:
        """Show the part of the pane that contains a widget."""

    def shown(self) -> None:
        """The pane became visible: focus the important part, show what is new."""

    def run_changed(self) -> None:
        """The followed run has news, and this pane is visible."""

    def theme_changed(self) -> None:
        """Redraw everything that has its own colors; style sheets handle the rest."""
        self.run_changed()

    def remember(self) -> None:
        """Save what is worth keeping to the console's state."""
