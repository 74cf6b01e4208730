"""The help screen: every key, those of the current tab first, filtered by typing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from mamba_tui.widgets.dialogs import Dialog
from mamba_tui.widgets.safe_text import safe

KEY_CELLS = 22
Section = tuple[str, Sequence[tuple[str, str]]]


class HelpScreen(Dialog):
    """Titles with rows of (keys, description) below."""

    DEFAULT_CSS = """
    HelpScreen > .dialog { width: 96; height: 100%; }
    HelpScreen VerticalScroll { height: 1fr; }
    HelpScreen Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "dismiss_none", "Close", show=False),
        Binding("up", "scroll(-1)", "Up", show=False),
        Binding("down", "scroll(1)", "Down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
        Binding("pagedown", "scroll(10)", "Page down", show=False),
    ]

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        self.sections = sections

    def compose(self) -> ComposeResult:
        """Filter and list."""
        with Vertical(classes="dialog") as box:
            box.border_title = "Keys"
            box.border_subtitle = safe("type to filter, ↑↓ scroll, Esc close")
            yield Input(placeholder="type a key or what you want to do")
            with VerticalScroll(can_focus=False):
                yield Static(key_list(self.sections, ""))

    def on_mount(self) -> None:
        """Typing filters at once."""
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show rows that contain the words typed."""
        self.query_one(Static).update(key_list(self.sections, event.value))
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def on_input_submitted(self) -> None:
        """Enter closes, as Escape does."""
        self.dismiss(None)

    def action_scroll(self, by: int) -> None:
        """Scroll."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def key_list(sections: Sequence[Section], typed: str) -> Content:
    """The keys whose row or title contains every word typed; a key alone is searched by its name."""
    words = typed.lower().split()
    lines: list[Content | str] = []
    for title, rows in sections:
        shown = [row for row in rows if _matches(title, row, typed.strip(), words)]
        if not shown:
            continue
        lines.append(Content.styled(f"{title}\n", "bold $accent"))
        for names, text in shown:
            lines.append(Content.assemble((f"  {names:<{KEY_CELLS}} ", "bold"), (f"{text}\n", "$muted")))
        lines.append("\n")
    return Content.assemble(*lines) if lines else safe(f"No key matches {typed.strip()!r}.")


def _matches(title: str, row: tuple[str, str], typed: str, words: Sequence[str]) -> bool:
    names, text = row
    if typed in names.split(", "):
        return True
    whole = f"{title} {names} {text}".lower()
    return len(typed) != 1 and all(word in whole for word in words)
