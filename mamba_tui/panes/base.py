"""What every pane can do."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textual.containers import Vertical
from textual.css.query import NoMatches

from core.errors import UserError

if TYPE_CHECKING:
    from mamba_tui.app import MambaTUI


async def guarded(console: MambaTUI, coroutine: Coroutine[Any, Any, None]) -> None:
    """Await, and turn what goes wrong in the world (not in us) into a notice."""
    try:
        await coroutine
    except (UserError, OSError) as error:
        console.say(error, problem=True)
    except NoMatches:
        # Near the end widgets go one after the other, and work that waited finds them gone.
        if console.is_running:
            raise


def css_beside(module: str) -> str:
    """The .tcss of a module's name beside it. Textual takes CSS_PATH from apps and screens only."""
    return Path(module).with_suffix(".tcss").read_text(encoding="utf-8")


class Pane(Vertical):
    """A tab's content."""

    SCOPED_CSS = False

    DEFAULT_CSS = """
    Pane { height: 1fr; width: 1fr; }
    """

    @property
    def console(self) -> MambaTUI:
        """The application, by its own type."""
        return cast("MambaTUI", self.app)

    def work(self, coroutine: Coroutine[Any, Any, None], group: str) -> None:
        """Run a coroutine in the background; another of the same group ends it."""
        self.run_worker(guarded(self.console, coroutine), group=group, exclusive=True, exit_on_error=True)

    def shown(self) -> None:
        """The pane came to the front: focus what matters, show what is new."""

    def session_changed(self) -> None:
        """The followed run has news, and this pane is on screen."""

    def remember(self) -> None:
        """Put what is worth keeping into the console's state."""
