"""Screens over the screen that can be left in a hurry."""

from __future__ import annotations

from asyncio import InvalidStateError
from typing import TYPE_CHECKING, Any

from textual.await_complete import AwaitComplete
from textual.command import CommandPalette
from textual.errors import NoWidget
from textual.geometry import Region
from textual.screen import Screen
from textual.widget import Widget

if TYPE_CHECKING:
    AnyScreen = Screen[Any]
else:
    AnyScreen = object  # Textual looks for styles and keys along the first of several screen classes

LEAVING = ("dismiss_none", "escape")


class LeftOnce(AnyScreen):
    """A screen that survives bursts of keys, which come faster than screens open and close.

    A second dismissal does nothing: Textual would close whatever screen is on top by then, or end the program
    because the answer was given already. Until its widgets exist, the screen can only be closed.
    """

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """No action on widgets that don't exist yet."""
        if not self.is_mounted and action not in LEAVING:
            return False
        return super().check_action(action, parameters)

    def dismiss(self, result: Any = None) -> AwaitComplete:
        """Answer, if this is the first answer and the screen is still on top."""
        if self.app.screen is not self:
            return AwaitComplete()
        try:
            return super().dismiss(result)
        except InvalidStateError:  # whoever asked no longer waits
            return self.app.pop_screen()


class Palette(LeftOnce, CommandPalette):
    """The command palette. It has no fixed id: the last one may still exist when the next one opens."""

    def get_widget_at(self, x: int, y: int) -> tuple[Widget, Region]:
        """The widget at a position; the palette itself if a click arrives after the terminal became smaller.

        Textual's palette doesn't expect that there is nothing.
        """
        try:
            return super().get_widget_at(x, y)
        except NoWidget:
            return self, self.region
