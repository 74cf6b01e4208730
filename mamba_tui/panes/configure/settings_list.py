"""All settings that aren't per layer: grouped, edited in place, with problems beside their field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.message import Message

from core.config.schema import AUTOMATIC, SETTINGS
from core.config.setting import Setting, show
from mamba_tui import keys
from mamba_tui.document import Document, other_settings, parse_setting
from mamba_tui.panes.configure.edit_document import EditDocument
from mamba_tui.widgets.line_edit import LineEdit
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import pad

GROUP_TITLES = {"model": "Model", "data": "Data", "training": "Training", "hardware": "Hardware"}
TEXT_CHOICES = {
    "tokenizer": ("auto", "char", "byte", "gpt2"),
    "device": ("auto", "cpu", "cuda", "mps"),
}


@dataclass(frozen=True)
class Row:
    """A group's title (`key` empty) or a setting."""

    group: str
    key: str = ""


def all_rows(needle: str = "") -> list[Row]:
    """Groups and their settings; with a needle, only settings whose key or help contains it."""
    rows: list[Row] = []
    low = needle.lower()
    for group in GROUP_TITLES:
        matching = [
            Row(group, key)
            for key in other_settings()
            if SETTINGS[key].group == group and (low in key or low in SETTINGS[key].help.lower())
        ]
        if matching:
            rows += [Row(group), *matching]
    return rows


def shown_value(item: Setting, value: object) -> str:
    """A setting's value as text to edit."""
    value = item.in_words(value)
    return value if isinstance(value, str) else show(value) if isinstance(value, bool) else str(value)


DIGITS = tuple("0123456789.-")


class SettingsList(Rows, EditDocument):
    """Edits the settings of a Document. Posts `Edited` after every change, also while typing."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("settings")
    header_rows = 0

    class Edited(Message):
        """The document has changed, or is being changed."""

        def can_replace(self, message: Message) -> bool:
            """Only the latest one matters."""
            return isinstance(message, SettingsList.Edited)

    def __init__(self, document: Document, *, read_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.document = document
        self.read_only = read_only
        self.needle = ""
        self.rows = all_rows()
        self.set_reactive(Rows.cursor, 1)

    # -------------------------------------------------------------- drawing

    @property
    def row_count(self) -> int:
        """Groups and settings."""
        return len(self.rows)

    def can_stop_at(self, index: int) -> bool:
        """Titles can't be selected."""
        return bool(self.rows[index].key)

    def filter(self, needle: str) -> None:
        """Show only settings that contain the needle."""
        self.finish()
        self.needle = needle
        self.rows = all_rows(needle)
        self.top = 0
        self.cursor = min(1, len(self.rows) - 1) if self.rows else 0
        self.rows_changed()

    @property
    def setting(self) -> Setting | None:
        """The setting under the cursor."""
        if not 0 <= self.cursor < len(self.rows):
            return None
        key = self.rows[self.cursor].key
        return SETTINGS[key] if key else None

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """Key, value with unit, and help or problem."""
        row = self.rows[index]
        if not row.key:
            title = GROUP_TITLES[row.group].upper()
            return [Segment(pad(f" {title}", width), self.style_of("header"))]
        item = SETTINGS[row.key]
        key_cells = 28 if width >= 44 else max(10, width * 2 // 3)
        # If there is no room for help, the line below the list has it.
        value_cells = 24 if width >= 96 else 18 if width >= 66 else max(8, width - key_cells - 2)
        value = self.document.values[row.key]
        problem = self.document.problem(row.key)
        changed = value != item.default
        if self.edit is not None and index == self.cursor:
            middle = self.edit.segments(value_cells, self.style_of("edit"))
        else:
            style = self.style_of("accent") if changed else self.component("")
            style = self.style_of("problem") if problem else style
            text = shown_value(item, value) or "(empty)"
            unit = f" {item.unit}" if item.unit and not problem and text != item.zero else ""
            if len(text) + len(unit) > value_cells:
                unit = ""
            middle = [
                Segment(pad(text, value_cells - len(unit)) if not unit else text, style),
                Segment(pad(unit, value_cells - len(text)) if unit else "", self.style_of("muted")),
            ]
        note, style = (
            (f"accepted: {problem.accepted}", self.style_of("problem"))
            if problem
            else (
                item.help,
                self.style_of("muted"),
            )
        )
        rest = max(0, width - key_cells - value_cells - 2)
        if problem and not rest:
            middle, rest = middle[:1], max(0, width - key_cells - 2 - middle[0].cell_length)
            middle = [Segment(middle[0].text.rstrip(), middle[0].style)] if self.edit is None else middle
            rest = max(0, width - key_cells - 2 - sum(part.cell_length for part in middle))
        return [
            # The mark shows without color too that a value isn't the default.
            Segment("•" if changed else " ", self.style_of("accent")),
            Segment(pad(row.key, key_cells), self.component("")),
            *middle,
            Segment(" " + pad(note, rest), style),
        ]

    # -------------------------------------------------------------- editing

    def changed(self) -> None:
        """Redraw, and tell everything that depends on the document."""
        self.refresh()
        self.post_message(self.Edited())

    def on_paste(self, event: events.Paste) -> None:
        """Paste into the value."""
        if self.read_only or self.setting is None:
            return
        event.stop()
        if self.edit is None:
            self.edit = LineEdit()
        self.edit.insert(event.text.strip())
        self.typed()

    def begins_with(self, character: str) -> bool:
        """Characters of a number start one."""
        item = self.setting
        if item is None or self.read_only or item.kind not in (int, float):
            return False
        return character in DIGITS or (character == "a" and (item.zero != "" or item.key in AUTOMATIC))

    def typed(self) -> None:
        """Try what is typed."""
        item = self.setting
        if item is not None and self.edit is not None:
            self.document.attempt(item.key, parse_setting(item.key, self.edit.text))
            self.changed()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In read-only mode only movement is possible."""
        return not self.read_only or action in ("move_cursor", "page", "edge", "select")

    def action_edit(self) -> None:
        """Edit in place; choices change to the next one."""
        item = self.setting
        if item is None:
            return
        if item.choices or item.kind is bool:
            self.action_cycle(1)
            return
        self.edit = LineEdit(shown_value(item, self.document.values[item.key]))
        self.refresh()

    def action_select(self) -> None:
        """Double-click edits."""
        if not self.read_only:
            self.action_edit()

    def action_cycle(self, direction: int) -> None:
        """Take the next choice; other values stay."""
        item = self.setting
        if item is None:
            return
        value = self.document.values[item.key]
        choices: tuple[object, ...] = item.choices or TEXT_CHOICES.get(item.key, ())
        if item.kind is bool:
            choices = (False, True)
        if not choices:
            if direction > 0:
                self.action_edit()
            return
        at = choices.index(value) if value in choices else -1
        self.document.set(item.key, choices[(at + direction) % len(choices)])
        self.changed()

    def action_default(self) -> None:
        """Reset to the default."""
        item = self.setting
        if item is not None:
            self.document.set(item.key, item.default)
            self.changed()

    def hint(self) -> tuple[str, Style]:
        """Everything about the selected setting in one line."""
        item = self.setting
        if item is None:
            return "", self.style_of("muted")
        problem = self.document.problem(item.key)
        if problem is not None:
            return str(problem), self.style_of("problem")
        default = shown_value(item, item.default) or "empty"
        unit = f" {item.unit}" if item.unit and default != item.zero else ""
        fixed = "  Can't be changed after training starts." if item.fixed else ""
        return f"{item.key}: {item.help}. Default {default}{unit}; {item.accepted}.{fixed}", self.style_of(
            "muted"
        )
