"""The dialog for a sweep, which describes the sweep while you type."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Checkbox, Input, Static

from core.errors import UserError
from core.sweeps.axes import parse_axes
from core.sweeps.preparing import SweepOptions
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.panes.base import work_on
from mamba_tui.widgets.dialogs import Dialog
from mamba_tui.widgets.safe_text import safe

# Name, label, and the meaning of an empty field.
FIELDS = (
    ("axes", "Vary", "learning_rate=1e-3,2e-3 dropout=0,0.2"),
    ("random", "Random", "a number of random variants; empty: every combination"),
    ("at_once", "At once", "as many as fit"),
    ("tag", "Name", "the next free one"),
    ("after", "Start after", "now, or the name of a run that has to end first"),
)
START = "start"


class Tick(Checkbox):
    """A checkbox that is empty when it is off; Textual's own differ only in color."""

    BUTTON_INNER = " "

    def watch_value(self) -> None:
        """Draw the mark, or none."""
        self.BUTTON_INNER = "X" if self.value else " "
        super().watch_value()


class SweepDialog(Dialog):
    """Fields from top to bottom, and one sentence about the sweep. Answers START; see `options`."""

    DEFAULT_CSS = """
    SweepDialog .field { height: 1; }
    SweepDialog .field Static { width: 13; color: $text-muted; }
    SweepDialog .field Input { width: 1fr; margin: 0; }
    SweepDialog Checkbox { margin: 0 0 0 12; background: $surface; }
    SweepDialog .size { height: auto; min-height: 2; margin: 1 0 0 0; }
    SweepDialog .size.-problem { color: $text-error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "app.focus_previous", "Previous", show=False),
        Binding("down", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, values: dict[str, str], prune: bool, say_size: Callable[[SweepOptions], str]) -> None:
        """`say_size` describes what would be trained in a sentence; it may wait, and raises UserError."""
        super().__init__()
        self.values = dict(values)
        self.prune = prune
        self._say_size = say_size

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(classes="dialog") as box:
            box.border_title = safe("Sweep: a run for every variant of this configuration")
            box.border_subtitle = safe("Enter next field, Esc cancel")
            for name, label, placeholder in FIELDS:
                with Horizontal(classes="field"):
                    yield Static(safe(label))
                    yield Input(self.values.get(name, ""), placeholder=placeholder, name=name)
            yield Tick(safe("end those early that are worse than the median"), self.prune, compact=True)
            yield Static("", classes="size")
            with Horizontal(classes="buttons"):
                yield Button(safe("Cancel"), compact=True, name="cancel")
                yield Button(safe("Start"), compact=True, name=START, variant="success")

    def on_mount(self) -> None:
        """Start at the varied keys."""
        self.query(Input).first().focus()
        self.call_after_refresh(self._show_size)

    def options(self) -> SweepOptions:
        """The options in the fields. Raises UserError that names a field."""
        text = {name: value.strip() for name, value in self.values.items()}
        return SweepOptions(
            axes=parse_axes(text.get("axes", "")),
            random=_whole("Random", text["random"]) if text.get("random") else None,
            prune=self.prune,
            at_once=_whole("At once", text["at_once"]) if text.get("at_once") else 0,
            tag=text.get("tag", ""),
            after=text.get("after", ""),
        )

    @on(Input.Changed)
    def _edited(self, event: Input.Changed) -> None:
        self.values[event.input.name or ""] = event.value
        self._show_size()

    @on(Checkbox.Changed)
    def _checked(self, event: Checkbox.Changed) -> None:
        self.prune = event.value
        self._show_size()

    @on(Input.Submitted)
    def _next_field(self, event: Input.Submitted) -> None:
        # A sweep is hours of work: it starts by its button only.
        fields = list(self.query(Input))
        if event.input is fields[-1]:
            self._button(START).focus()
        else:
            self.app.action_focus_next()

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.name if event.button.name == START else None)

    def _button(self, name: str) -> Button:
        return next(button for button in self.query(Button) if button.name == name)

    def _show_size(self) -> None:
        if self.is_mounted:
            work_on(self, self._find_size(), "size")

    async def _find_size(self) -> None:
        try:
            sentence, problem = await off_thread(self._say_size, self.options()), False
        except UserError as error:
            sentence, problem = str(error), True
        self._button(START).disabled = problem
        size = self.query_one(".size", Static)
        size.set_class(problem and bool(self.values.get("axes")), "-problem")
        size.update(safe(sentence))


def _whole(field: str, text: str) -> int:
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise UserError(f'{field} is "{text}"; accepted: a whole number, or nothing') from None
