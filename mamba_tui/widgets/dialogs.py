"""Small questions: yes or no, one of several, a line of text, and a page to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static
from textual.widgets.input import Selection

from mamba_tui.widgets.modal import LeftOnce
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import clip, pad, safe

CSS = """
    align: center middle;
    & > .dialog {
        width: 72; max-width: 100%; height: auto; max-height: 100%;
        background: $surface; border: round $primary; padding: 0 1;
        border-title-color: $accent; border-title-style: bold; border-subtitle-color: $text-muted;
    }
    & .message { height: auto; padding: 0 0 1 0; }
    & .buttons { height: 1; align-horizontal: right; }
    & Button { margin: 0 0 0 2; }
    & Input { border: none; background: $boost; height: 1; padding: 0 1; margin: 0 0 1 0; }
    & Input:focus { background: $primary 30%; border: none; }
    & .problem { color: $text-error; height: auto; }
"""


class Dialog(LeftOnce, ModalScreen[str | None]):
    """What all dialogs have in common: a titled box, and Escape to close it."""

    DEFAULT_CSS = f"Dialog {{ {CSS} }}"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss_none", "Cancel", show=True)]

    def action_dismiss_none(self) -> None:
        """Answer nothing."""
        self.dismiss(None)


@dataclass(frozen=True)
class Answer:
    """One button of a question."""

    value: str
    label: str
    variant: str = "default"


class Question(Dialog):
    """A sentence and buttons: the way out at the left, the action at the right.

    Enter gives the answer `default`, by default the action; if that destroys something, name another one.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,up", "app.focus_previous", "Previous", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def __init__(
        self, title: str, message: str | Content, answers: Sequence[Answer], *, default: str = ""
    ) -> None:
        super().__init__()
        self.question = title
        self.message = message
        self.answers = answers
        self.default = next((answer for answer in answers if answer.value == default), answers[-1])

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe(clip(self.question, 60))
            ways = f"Enter {self.default.label}" + (", Esc cancel" if len(self.answers) > 1 else "")
            box.border_subtitle = safe(ways)
            content = self.message if isinstance(self.message, Content) else safe(self.message, lines=True)
            yield Static(content, classes="message")
            with Horizontal(classes="buttons"):
                for answer in self.answers:
                    button = Button(safe(answer.label), compact=True, name=answer.value)
                    button.variant = answer.variant
                    yield button

    def on_mount(self) -> None:
        """Enter gives the default answer."""
        next(button for button in self.query(Button) if button.name == self.default.value).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.name)


class Prompt(Dialog):
    """A line of text."""

    def __init__(
        self,
        title: str,
        message: str,
        value: str = "",
        placeholder: str = "",
        *,
        check: Callable[[str], tuple[str, str] | None] = lambda text: None,
    ) -> None:
        """`check` returns what is wrong with an answer and its wrong word; the prompt then stays open."""
        super().__init__()
        self.question = title
        self.message = message
        self.value = value
        self.placeholder = placeholder
        self.check = check

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe(clip(self.question, 60))
            box.border_subtitle = safe("Enter accept, Esc cancel")
            yield Static(safe(self.message, lines=True), classes="message")
            yield Input(self.value, placeholder=self.placeholder, select_on_focus=False)
            yield Static("", classes="problem")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer, or say what is wrong with it and select the word."""
        problem = self.check(event.value)
        if problem is None:
            self.dismiss(event.value)
            return
        sentence, word = problem
        self.query_one(".problem", Static).update(safe(sentence))
        start = event.value.find(word)
        if word and start >= 0:
            event.input.selection = Selection(start, start + len(word))


class ChoiceRows(Rows):
    """Label and explanation, one choice per row."""

    header_rows = 0

    def __init__(self, choices: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self.all = list(choices)
        self.choices = list(choices)

    @property
    def row_count(self) -> int:
        """One row a choice."""
        return len(self.choices)

    def filter(self, needle: str) -> None:
        """Show only the choices that contain the needle."""
        low = needle.lower()
        self.choices = [choice for choice in self.all if low in f"{choice[1]} {choice[2]}".lower()]
        self.rows_changed()

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """The label at the left, its explanation at the right."""
        _, label, about = self.choices[index]
        longest = max((len(choice[1]) for choice in self.all), default=0)
        cells = min(max(longest + 2, 12), max(12, width * 3 // 5))
        return [
            Segment(" " + pad(label, cells), self.component("")),
            Segment(pad(about, max(0, width - cells - 1)), self.style_of("muted")),
        ]


class Choice(Dialog):
    """One of several choices; if there are many, typing filters them."""

    DEFAULT_CSS = """
    Choice ChoiceRows { height: auto; max-height: 16; background: $surface; }
    Choice ChoiceRows > * { background: $surface; }
    """
    MANY = 12

    def __init__(
        self, title: str, choices: Sequence[tuple[str, str, str]], message: str = "", start: int = 0
    ) -> None:
        super().__init__()
        self.question = title
        self.message = message
        self.choices = choices
        self.start = start

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe(clip(self.question, 60))
            box.border_subtitle = safe("Enter choose, Esc cancel")
            if self.message:
                yield Static(safe(self.message, lines=True), classes="message")
            if len(self.choices) > self.MANY:
                yield Input(placeholder="type to filter")
            rows = ChoiceRows(self.choices)
            rows.styles.height = max(1, min(16, len(self.choices)))
            yield rows

    def on_mount(self) -> None:
        """Start at the current choice."""
        rows = self.query_one(ChoiceRows)
        rows.cursor = self.start
        rows.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter the list."""
        self.query_one(ChoiceRows).filter(event.value)

    def on_input_submitted(self) -> None:
        """Enter in the filter chooses the row under the cursor."""
        self.query_one(ChoiceRows).action_select()

    def on_rows_selected(self, event: Rows.Selected) -> None:
        """Answer."""
        rows = self.query_one(ChoiceRows)
        if 0 <= event.index < len(rows.choices):
            self.dismiss(rows.choices[event.index][0])


class Page(Dialog):
    """Text to read: help, differences, details."""

    DEFAULT_CSS = """
    Page > .dialog { width: 96; }
    Page VerticalScroll { height: auto; max-height: 100%; }
    Page Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,q,f1", "dismiss_none", "Close", show=True),
        Binding("up,k", "scroll(-1)", "Up", show=False),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("pageup", "scroll(-10)", "Page up", show=False),
        Binding("pagedown,space", "scroll(10)", "Page down", show=False),
    ]

    def __init__(self, title: str, content: Content) -> None:
        super().__init__()
        self.question = title
        self.content = content

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe(clip(self.question, 80))
            box.border_subtitle = safe("↑↓ scroll, Esc close")
            with VerticalScroll(can_focus=False):
                yield Static(self.content)

    def action_scroll(self, by: int) -> None:
        """Scroll."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)
