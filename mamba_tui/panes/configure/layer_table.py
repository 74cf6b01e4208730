"""The layer table: one row per layer, edited in place, with the hourglass beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.color import Color
from textual.message import Message
from textual.reactive import reactive

from core.config.schema import ATTENTION_TYPES, SETTINGS
from mamba_tui import keys
from mamba_tui.document import Document, fitting_heads, parse_setting, type_name, width_unit
from mamba_tui.messages import Notice
from mamba_tui.panes.configure.edit_document import EditDocument
from mamba_tui.widgets import hourglass
from mamba_tui.widgets.line_edit import LineEdit
from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import pad

COLUMNS = ("attention_type", "n_embd", "n_head")
TITLES = {"attention_type": "type", "n_embd": "width", "n_head": "heads"}
CELLS = {"attention_type": 11, "n_embd": 7, "n_head": 6}
NUMBER_CELLS = 4
COST_CELLS = 17


class LayerTable(Rows, EditDocument):
    """Edits the layers of a Document. Posts `Edited` after every change, also while typing."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("layers")
    DEFAULT_CSS = """
    LayerTable { height: auto; }
    """
    column = reactive(1)

    class Edited(Message):
        """The document has changed, or is being changed."""

        def can_replace(self, message: Message) -> bool:
            """Only the latest one matters."""
            return isinstance(message, LayerTable.Edited)

    class Wanted(Message):
        """A dialog is wanted: `ramp` or `list`."""

        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

    def __init__(self, document: Document, *, read_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.document = document
        self.read_only = read_only
        self.costs: Sequence[tuple[int, float]] = ()

    # -------------------------------------------------------------- drawing

    @property
    def row_count(self) -> int:
        """One row per layer, and one for embedding and head."""
        return self.document.layer_count + 1

    def can_stop_at(self, index: int) -> bool:
        """Values that follow from the widths can't be selected."""
        return index < self.document.layer_count

    def show_costs(self, costs: Sequence[tuple[int, float]]) -> None:
        """Parameters and share of the FLOPs of every layer; empty while the values are invalid."""
        self.costs = costs
        self.refresh()

    def header_segments(self, width: int) -> list[Segment]:
        """Column titles."""
        style, active = self.style_of("header"), self.style_of("accent")
        segments = [Segment("  # ", style)]
        for index, key in enumerate(COLUMNS):
            chosen = active if index == self.column and self.has_focus else style
            segments.append(Segment(pad(TITLES[key], CELLS[key], right=index > 0), chosen))
        segments.append(Segment(f"{'params':>10}{'FLOPs':>7}  ", style))
        used = NUMBER_CELLS + sum(CELLS.values()) + COST_CELLS + 2
        segments.append(Segment("hourglass".center(max(0, width - used)), style))
        return segments

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """Number, values, costs and bar of one layer."""
        muted = self.style_of("muted")
        if index == self.document.layer_count:
            cells = NUMBER_CELLS + sum(CELLS.values())
            return [Segment(pad("    embedding and head", cells), muted), self._cost(index)]
        segments = [Segment(f"{index + 1:>3} ", muted)]
        for place, key in enumerate(COLUMNS):
            segments += self._value(index, place, key)
        segments.append(self._cost(index))
        room = width - sum(segment.cell_length for segment in segments)
        kind, wide, _ = self.document.layer(index)
        problem = next((p for key in COLUMNS if (p := self.document.problem(key, index))), None)
        if problem is not None:
            segments.append(Segment(pad(problem.accepted, max(0, room)), self.style_of("problem")))
        elif room > 3:
            segments += hourglass.bar(kind, wide, self._widest(), room, self._color(kind))
        return segments

    def _cost(self, index: int) -> Segment:
        """Parameters and share of the operations of a row."""
        if index >= len(self.costs):
            return Segment(f"{'-':>10}{'-':>6}   ", self.style_of("muted"))
        parameters, share = self.costs[index]
        return Segment(f"{compact(parameters):>10}{share:>6.0%}   ", self.style_of("muted"))

    def hint(self) -> str:
        """A description of the column under the cursor."""
        item = SETTINGS[self.key_name]
        return f"{TITLES[self.key_name]}: {item.help}. {item.accepted_entry}."

    def _widest(self) -> int:
        widths = [width for width in self.document.values["n_embd"] if isinstance(width, int)]
        return max(widths, default=1)

    def _color(self, kind: object) -> Style:
        name = hourglass.COLOR_VARIABLE.get(str(kind), "foreground")
        color = Color.parse(self.app.theme_variables.get(name, "#808080"))
        return self.component("") + Style(color=color.rich_color)

    def _value(self, index: int, place: int, key: str) -> list[Segment]:
        cells, value = CELLS[key], self.document.values[key][index]
        here = index == self.cursor and place == self.column
        if here and self.edit is not None:
            return [Segment(" "), *self.edit.segments(cells - 1, self.style_of("edit"))]
        style = self.component("")
        if key == "attention_type":
            sign = hourglass.SIGN.get(str(value), "?")
            text, style = pad(f"{sign} {value}", cells), self._color(value)
        elif key == "n_head" and self.document.values["attention_type"][index] == "mamba":
            # S6 has no heads, but the number is kept in case the type changes.
            text, style = pad("·", cells, right=True), self.style_of("muted")
        else:
            text = pad(value, cells, right=True)
        if self.document.problem(key, index) is not None:
            style = self.style_of("problem")
        if here and self.has_focus:
            style = style + Style(reverse=True, bold=True)
        if key == "attention_type":
            shown = text.rstrip()
            return [Segment(shown, style), Segment(text[len(shown) :], self.component(""))]
        shown = text.lstrip()
        return [Segment(text[: len(text) - len(shown)], self.component("")), Segment(shown, style)]

    # -------------------------------------------------------------- editing

    def changed(self) -> None:
        """Redraw, and tell everything that depends on the document."""
        self.rows_changed()
        self.refresh(layout=True)
        self.post_message(self.Edited())

    def on_paste(self, event: events.Paste) -> None:
        """Paste into the cell, or a whole list into the table."""
        if self.read_only:
            return
        event.stop()
        if self.edit is not None:
            self.edit.insert(event.text)
            self.typed()
        else:
            self.paste(event.text)

    def paste(self, text: str) -> None:
        """Use a list of widths, heads or types, or say why it can't be used."""
        try:
            done = self.document.paste(text)
        except ValueError as error:
            self.post_message(Notice(error, problem=True))
            return
        self.post_message(Notice(f"set {done}"))
        self.changed()

    @property
    def key_name(self) -> str:
        """The configuration key of the column under the cursor."""
        return COLUMNS[self.column]

    def begins_with(self, character: str) -> bool:
        """Digits start a number."""
        return character.isdigit() and self.column > 0 and not self.read_only

    def typed(self) -> None:
        """Try what is typed, so that the hourglass changes at once."""
        assert self.edit is not None
        value: object = parse_setting(self.key_name, self.edit.text)
        if self.key_name == "attention_type":
            try:
                value = type_name(self.edit.text)
            except ValueError:
                value = self.edit.text
        self.document.attempt(self.key_name, value, self.cursor)
        self.changed()

    def clicked(self, index: int, x: int) -> None:
        """Select the column that was clicked; clicking on a type chooses the next one."""
        left = NUMBER_CELLS
        for place, key in enumerate(COLUMNS):
            if left <= x < left + CELLS[key]:
                self.column = place
            left += CELLS[key]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In read-only mode only movement is possible."""
        moving = ("move_cursor", "move_column", "page", "edge", "select")
        return not self.read_only or action in moving

    def watch_column(self) -> None:
        """Draw the other column as selected, and have it described."""
        self.refresh()
        self.post_message(Rows.Moved(self, self.cursor))

    def action_move_column(self, by: int) -> None:
        """To the column at the left or right."""
        self.column = min(max(self.column + by, 0), len(COLUMNS) - 1)

    def action_edit(self) -> None:
        """Edit the value in place; types change to the next one."""
        if self.key_name == "attention_type":
            self.action_cycle(1)
        else:
            self.edit = LineEdit(str(self.document.values[self.key_name][self.cursor]))
            self.refresh()

    def action_select(self) -> None:
        """Double-click edits."""
        if not self.read_only:
            self.action_edit()

    def action_cycle(self, direction: int) -> None:
        """The next value that is accepted."""
        kind, _, _ = self.document.layer(self.cursor)
        if self.key_name != "attention_type":
            self.action_nudge(direction)
            return
        at = ATTENTION_TYPES.index(kind) if kind in ATTENTION_TYPES else -1
        self._set(ATTENTION_TYPES[(at + direction) % len(ATTENTION_TYPES)])

    def action_nudge(self, direction: int) -> None:
        """Increase or decrease a number a little."""
        kind, width, heads = self.document.layer(self.cursor)
        if self.key_name == "attention_type":
            self.action_cycle(direction)
        elif not isinstance(width, int) or not isinstance(heads, int):
            return
        elif self.key_name == "n_embd":
            unit = max(16, width_unit(heads))
            step = width // unit + 1 if direction > 0 else -(-width // unit) - 1
            self._set(min(max(unit, step * unit), 65536))
        else:
            choices = fitting_heads(self.document.values, kind, width)
            beyond = [c for c in choices if (c > heads if direction > 0 else c < heads)]
            if beyond:
                self._set(beyond[0 if direction > 0 else -1])

    def _set(self, value: object) -> None:
        self.document.set_layer(self.cursor, self.key_name, value)
        self.changed()

    def _go(self, index: int) -> None:
        self.rows_changed()
        self.cursor = index
        self.changed()

    def action_add(self) -> None:
        """Add a layer."""
        self._go(self.document.add_layer(self.cursor))

    def action_remove(self) -> None:
        """Remove the layer."""
        self._go(self.document.remove_layer(self.cursor))

    def action_duplicate(self) -> None:
        """Duplicate the layer."""
        self._go(self.document.duplicate_layer(self.cursor))

    def action_shift(self, by: int) -> None:
        """Move the layer."""
        self._go(self.document.move_layer(self.cursor, by))

    def action_mirror(self) -> None:
        """Make the hourglass symmetric."""
        self.document.mirror()
        self.changed()

    def action_ramp(self) -> None:
        """Ask for a ramp."""
        self.post_message(self.Wanted("ramp"))

    def action_paste_list(self) -> None:
        """Ask for a list."""
        self.post_message(self.Wanted("list"))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """A row for each layer and the header."""
        return self.row_count + self.header_rows
