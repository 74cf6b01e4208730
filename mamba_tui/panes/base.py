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
    """The .tcss of a module's name beside it. Textual takes CSS_PATH from apps and screens only."""
    return Path(module).with_suffix(".tcss").read_text(encoding="utf-8")


def work_on(widget: Widget, coroutine: Coroutine[Any, Any, None], group: str) -> None:
    """Run a coroutine in the background for a widget; another of the same group ends it."""
    widget.run_worker(_guarded(widget, coroutine), group=group, exclusive=True, exit_on_error=True)


async def _guarded(widget: Widget, coroutine: Coroutine[Any, Any, None]) -> None:
    """Await, and turn what goes wrong in the world (not in us) into a notice."""
    try:
        await coroutine
    except (UserError, OSError) as error:
        widget.post_message(Notice(error, problem=True))
    except NoMatches:
        # Near the end widgets go one after the other, and work that waited finds them gone.
        if widget.app.is_running:
            raise


class Pane(Vertical):
    """A tab's content. It knows the objects it was given and nothing of the app or of other panes."""

    SCOPED_CSS = False

    DEFAULT_CSS = """
    Pane { height: 1fr; width: 1fr; }
    """

    def on_mount(self) -> None:
        """Hear of every change of theme."""
        self.app.theme_changed_signal.subscribe(self, self._theme_changed)

    def _theme_changed(self, _theme: Theme) -> None:
        if self.in_front:
            self.theme_changed()

    @property
    def in_front(self) -> bool:
        """Whether this is the tab that is being looked at."""
        return self.is_attached and self.display and self.app.is_running

    def say(self, text: object, *, problem: bool = False) -> None:
        """Tell the user something."""
        self.post_message(Notice(text, problem))

    async def ask(self, question: Screen[str | None]) -> str | None:
        """Put a dialog over the page and wait for its answer; None when it was left."""
        return await self.app.push_screen_wait(question)

    def work(self, coroutine: Coroutine[Any, Any, None], group: str) -> None:
        """Run a coroutine in the background; another of the same group ends it."""
        work_on(self, coroutine, group)

    def target(self, selector: str) -> Widget:
        """The part of this pane that has a command's keys, brought up and focused where it can be."""
        widgets = [self] if type(self).__name__ == selector else list(self.query(selector))
        widget: Widget = widgets[0]
        focused = self.screen.focused
        if focused is not None and isinstance(focused, type(widget)):
            widget = focused  # of several charts or texts, the one in use
        self.bring_up(widget)
        if widget.focusable:
            widget.focus()
        return widget

    def bring_up(self, widget: Widget) -> None:
        """Show the part of the pane that a widget is in."""

    def shown(self) -> None:
        """The pane came to the front: focus what matters, show what is new."""

    def run_changed(self) -> None:
        """The followed run has news, and this pane is on screen."""

    def theme_changed(self) -> None:
        """Draw what has colors of its own again; style sheets look after everything else."""
        self.run_changed()

    def remember(self) -> None:
        """Put what is worth keeping into the console's state."""
