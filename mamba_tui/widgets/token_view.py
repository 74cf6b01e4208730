"""Text as it is generated, token by token: wrapped as it grows, shaded by surprise, with a cursor.

Appending takes time for the token, not for the text: only the last line is ever touched. Whole texts are
wrapped again only when the width changes or the text is cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.color import Color
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from mamba_tui import keys, themes
from mamba_tui.widgets.cached_styles import CachedStyles
from mamba_tui.widgets.safe_text import visible

MOST_TOKENS = 40_000
DROPPED_AT_ONCE = 8_000
# Surprise in bits (-log2 probability) at which each shade begins.
SHADES = (1.0, 2.0, 3.5, 5.0, 7.0, 10.0)
_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text. `generation` and `index` identify it for the generator; a prompt has neither."""

    text: str
    probability: float | None = None
    alternatives: Sequence[tuple[str, float]] = ()
    alternative_ids: Sequence[int] = ()
    generation: int = 0
    index: int = -1


class Wrapper:
    """Lines of (token, text) fragments that grow at the end."""

    def __init__(self, width: int) -> None:
        self.width = max(1, width)
        self.lines: list[list[tuple[int, str]]] = [[]]
        self._used = 0
        self._word = 0
        self._soft = False

    def add(self, token: int, text: str) -> None:
        """Append a token's text."""
        for piece in _PIECES.findall(text):
            if piece == "\n":
                self.lines[-1].append((token, ""))
                self._new_line()
                self._soft = False
            elif piece[0].isspace():
                self._space(token, piece)
            else:
                self._letters(token, piece)

    def _new_line(self, carried: Sequence[tuple[int, str]] = ()) -> None:
        self.lines.append(list(carried))
        self._used = sum(cell_len(text) for _, text in carried)
        self._word = 0
        self._soft = not carried

    def _space(self, token: int, piece: str) -> None:
        cells = cell_len(piece)
        if self._soft and not self._used:
            # Spaces around a wrap belong to it.
            self.lines[-1].append((token, ""))
            return
        if self._used + cells > self.width:
            # The line ends at a space that doesn't fit.
            self.lines[-1].append((token, ""))
            self._new_line()
            return
        self.lines[-1].append((token, piece))
        self._used += cells
        self._word = len(self.lines[-1])

    def _letters(self, token: int, piece: str) -> None:
        cells = cell_len(piece)
        if self._used + cells > self.width and self._word:
            line = self.lines[-1]
            carried = line[self._word :]
            del line[self._word :]
            self._new_line(carried)
        while self._used + cells > self.width:
            room = self.width - self._used
            head = chop_cells(piece, room)[0] if room > 0 else ""
            if not head and not self.lines[-1]:
                head = piece[0]  # one character wider than the view
            if head:
                self.lines[-1].append((token, head))
            piece = piece[len(head) :]
            cells = cell_len(piece)
            self._new_line()
        if piece:
            self.lines[-1].append((token, piece))
            self._used += cells


class TokenView(CachedStyles, can_focus=True):
    """The text, its cursor and its scroll."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tokens--prompt",
        "tokens--cursor",
        "tokens--thumb",
        "tokens--empty",
    }
    DEFAULT_CSS = """
    TokenView { height: 1fr; width: 1fr; background: $background; color: $foreground; }
    TokenView .tokens--prompt { text-style: bold; color: $foreground; background: $background; }
    TokenView .tokens--cursor { background: $accent; color: $background; text-style: bold; }
    TokenView .tokens--thumb { color: $primary; background: $background; }
    TokenView .tokens--empty { color: $text-muted; background: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("tokens")

    cursor: reactive[int | None] = reactive(None)
    surprise = reactive(False)

    class Moved(Message):
        """The cursor is on another token."""

        def __init__(self, view: TokenView) -> None:
            super().__init__()
            self.view = view

        def can_replace(self, message: Message) -> bool:
            """Only the last position matters."""
            return isinstance(message, TokenView.Moved) and message.view is self.view

    class Wanted(Message):
        """Asks the view's owner for `alternatives`, `branch` or `copy`."""

        def __init__(self, view: TokenView, what: str) -> None:
            super().__init__()
            self.view = view
            self.what = what

    def __init__(self, empty: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.empty = empty
        self.tokens: list[Token] = []
        self.wrapper = Wrapper(1)
        self.top = 0
        self.follow = True
        self._shades: list[Style] = []

    # ----------------------------------------------------------------- text

    @property
    def text(self) -> str:
        """All of it, as it was generated."""
        return "".join(token.text for token in self.tokens)

    def clear(self) -> None:
        """Start over."""
        self.tokens = []
        self.follow = True
        self.top = 0
        self.set_reactive(TokenView.cursor, None)
        self._wrap()

    def show_text(self, tokens: list[Token]) -> None:
        """Show another text, which stays the caller's list: it grows with what is appended."""
        self.tokens = tokens
        self.follow = True
        self.top = 0
        self.set_reactive(TokenView.cursor, None)
        self._wrap()

    @property
    def mean_bits(self) -> float | None:
        """The mean surprise of the tokens that the model chose; None where there are none."""
        known = [max(token.probability, 1e-12) for token in self.tokens if token.probability is not None]
        return -sum(map(math.log2, known)) / len(known) if known else None

    def append(self, tokens: Sequence[Token]) -> None:
        """Add tokens at the end; several at once cost one redraw, of only the changed lines if possible."""
        # A word that is being written may move to the next line, so start one line earlier.
        top, first, empty = self.top, max(0, len(self.wrapper.lines) - 2), not self.tokens
        for token in tokens:
            self.wrapper.add(len(self.tokens), visible(token.text, lines=True))
            self.tokens.append(token)
        if len(self.tokens) > MOST_TOKENS:
            del self.tokens[:DROPPED_AT_ONCE]
            self.cursor = None if self.cursor is None else max(0, self.cursor - DROPPED_AT_ONCE)
            self._wrap()
            return
        last = max(0, len(self.wrapper.lines) - self.size.height)
        self.top = last if self.follow else min(self.top, last)
        if self.top != top or empty or last > 0:
            self.refresh()
        else:
            self.refresh(Region(0, first - top, self.size.width, max(0, self.size.height - first + top)))

    def cut(self, count: int) -> None:
        """Keep the first `count` tokens."""
        del self.tokens[count:]
        self.set_reactive(TokenView.cursor, None)
        self.follow = True
        self._wrap()

    def _wrap(self) -> None:
        self.wrapper = Wrapper(max(1, self.size.width - 2))
        for index, token in enumerate(self.tokens):
            self.wrapper.add(index, visible(token.text, lines=True))
        self._scrolled()

    def _scrolled(self) -> None:
        last = max(0, len(self.wrapper.lines) - self.size.height)
        self.top = last if self.follow else min(self.top, last)
        self.refresh()

    def on_resize(self) -> None:
        """Wrap again if the width has changed."""
        if self.wrapper.width != max(1, self.size.width - 2):
            self._wrap()
            self._reveal()
        else:
            self._scrolled()

    # -------------------------------------------------------------- drawing

    def notify_style_update(self) -> None:
        """Other colors."""
        super().notify_style_update()
        self._shades = []

    def shades(self) -> list[Style]:
        """Backgrounds from calm to surprising, made from the theme's warning color, and a text color for
        each.
        """
        if not self._shades:
            variables = self.app.theme_variables
            base = Color.parse(variables.get("background", "#000000"))
            hot = Color.parse(variables.get("warning", "#e6a23c"))
            text = Color.parse(variables.get("foreground", "#ffffff"))
            for place in range(len(SHADES) + 1):
                self._shades.append(themes.shaded(base.blend(hot, 0.75 * place / len(SHADES)), text, base))
        return self._shades

    def shade(self, probability: float | None) -> Style:
        """The background of a token."""
        if probability is None:
            return self.shades()[0]
        bits = -math.log2(max(probability, 1e-12))
        return self.shades()[sum(bits >= limit for limit in SHADES)]

    def render_line(self, y: int) -> Strip:
        """One line of text."""
        width = self.size.width
        base = self.component("")
        index = self.top + y
        if not self.tokens:
            if y == self.size.height // 2 and self.empty:
                text = self.empty[:width].center(width)
                return Strip([Segment(text, self.component("tokens--empty"))], width)
            return Strip.blank(width, base)
        if index >= len(self.wrapper.lines):
            return Strip.blank(width, base)
        segments = [Segment(" ", base)]
        prompt = self.component("tokens--prompt")
        for number, text in self.wrapper.lines[index]:
            token = self.tokens[number]
            style = prompt if token.index < 0 and token.generation == 0 else base
            if self.surprise and token.probability is not None:
                style = style + self.shade(token.probability)
            if number == self.cursor:
                # Neither a shade nor a prompt looks like this, and without the focus it can still be seen.
                style = self.component("tokens--cursor") if self.has_focus else style + Style(underline=True)
                text = text or " "
            segments.append(Segment(text, style))
        strip = Strip(segments).adjust_cell_length(width - 1, base)
        return Strip([*strip, self._thumb(y)], width)

    def _thumb(self, y: int) -> Segment:
        height, total = self.size.height, len(self.wrapper.lines)
        if total <= height:
            return Segment(" ", self.component(""))
        start = self.top * height // total
        end = max(start + 1, (self.top + height) * height // total)
        return Segment("▐" if start <= y < end else " ", self.component("tokens--thumb"))

    # ------------------------------------------------------------- movement

    def line_of(self, token: int) -> int:
        """The line a token begins on."""
        low, high = 0, len(self.wrapper.lines) - 1
        while low < high:
            middle = (low + high) // 2
            line = self.wrapper.lines[middle]
            if line and line[-1][0] < token:
                low = middle + 1
            elif not line:
                # Only the very last line can be empty: it begins after every token.
                high = middle
            else:
                high = middle
        return low

    def validate_cursor(self, cursor: int | None) -> int | None:
        """Keep the cursor on a token."""
        if cursor is None or not self.tokens:
            return None
        return min(max(cursor, 0), len(self.tokens) - 1)

    def watch_cursor(self) -> None:
        """Scroll to the cursor and report it."""
        self._reveal()
        self.refresh()
        self.post_message(self.Moved(self))

    def _reveal(self) -> None:
        if self.cursor is None:
            return
        line = self.line_of(self.cursor)
        self.top = min(max(self.top, line - self.size.height + 1), line)

    @property
    def current(self) -> Token | None:
        """The token under the cursor."""
        return (
            self.tokens[self.cursor] if self.cursor is not None and self.cursor < len(self.tokens) else None
        )

    def action_move(self, by: int) -> None:
        """Move to a neighboring token; the first move starts at the end."""
        if not self.tokens:
            return
        self.follow = False
        self.cursor = len(self.tokens) - 1 if self.cursor is None else self.cursor + by

    def action_move_line(self, by: int) -> None:
        """Move a line up or down; without a cursor, the text scrolls."""
        if self.cursor is None:
            self._scroll(by)
            return
        target = self.line_of(self.cursor) + by
        if 0 <= target < len(self.wrapper.lines) and self.wrapper.lines[target]:
            self.cursor = self.wrapper.lines[target][0][0]

    def action_edge(self, direction: int) -> None:
        """Move to the first token, or to the end, and follow it."""
        if direction < 0:
            self.follow = False
            self.cursor = 0
        else:
            self.cursor = None
            self.follow = True
            self._scrolled()

    def action_alternatives(self) -> None:
        """Ask for another token here."""
        self.post_message(self.Wanted(self, "alternatives"))

    def action_branch(self) -> None:
        """Ask to continue from here."""
        self.post_message(self.Wanted(self, "branch"))

    def action_copy(self) -> None:
        """Ask to copy."""
        self.post_message(self.Wanted(self, "copy"))

    def _scroll(self, by: int) -> None:
        last = max(0, len(self.wrapper.lines) - self.size.height)
        self.top = min(max(0, self.top + by), last)
        self.follow = self.top == last
        self.refresh()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll."""
        event.stop()
        self._scroll(-3)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll."""
        event.stop()
        self._scroll(3)

    def on_click(self, event: events.Click) -> None:
        """The cursor moves to the token that was clicked."""
        line = self.top + event.y
        if line >= len(self.wrapper.lines) or not self.tokens:
            return
        at = 1
        for number, text in self.wrapper.lines[line]:
            at += cell_len(text)
            if event.x < at:
                self.follow = False
                self.cursor = number
                return
