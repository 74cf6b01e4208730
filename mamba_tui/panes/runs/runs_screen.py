"""The runs list: every run with its live state. Follow one, or draw others behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.color import Color
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from mamba_tui import keys
from mamba_tui.backend.run_client import RunClient, RunRow
from mamba_tui.widgets.bars import KeyBar
from mamba_tui.widgets.modal import LeftOnce
from mamba_tui.widgets.numbers import age, compact, loss
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import pad, safe
from mamba_tui.wording import SIGN, STATE_COLOR

REFRESH_SECONDS = 1.0


class RunRows(Rows):
    """One run per row."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("run_rows")

    def __init__(self) -> None:
        super().__init__(id="run-rows")
        self.everything: Sequence[RunRow] = ()
        self.rows: list[RunRow] = []
        self.overlays: set[str] = set()
        self.followed = ""
        self.needle = ""

    @property
    def row_count(self) -> int:
        """Runs that pass the filter."""
        return len(self.rows)

    @property
    def current(self) -> RunRow | None:
        """The run under the cursor."""
        return self.rows[self.cursor] if self.rows else None

    def show(self, rows: Sequence[RunRow]) -> None:
        """Show new states; the cursor stays on its run."""
        name = self.current.name if self.current else self.followed
        self.everything = rows
        low = self.needle.lower()
        self.rows = [row for row in rows if low in row.name.lower()]
        self.cursor = next((i for i, row in enumerate(self.rows) if row.name == name), self.cursor)
        self.rows_changed()

    def filter(self, needle: str) -> None:
        """Show only runs whose name contains the needle."""
        self.needle = needle
        self.show(self.everything)

    def header_segments(self, width: int) -> list[Segment]:
        """Titles."""
        text = f"   {pad('run', self._name_cells(width))}{'state':<12}{'step':>9}{'valid.':>9}"
        text += f"{'bits/B':>8}{'tok/s':>9}{'age':>8}"
        return [Segment(text, self.style_of("header"))]

    def _name_cells(self, width: int) -> int:
        return max(8, width - 3 - 12 - 9 - 9 - 8 - 9 - 8)

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """Marks, name, state, figures."""
        row, base = self.rows[index], self.component("")
        status = row.status
        variable = STATE_COLOR.get(status.state, "accent")
        color = Color.parse(self.app.theme_variables.get(variable, "#888888")).rich_color
        mark = "▸" if row.name == self.followed else "+" if row.name in self.overlays else " "
        return [
            Segment(f" {mark} ", self.style_of("accent")),
            Segment(pad(row.name, self._name_cells(width)), base),
            Segment(pad(f"{SIGN.get(status.state, '◌')} {status.state}", 12), base + Style(color=color)),
            Segment(f"{status.step:>9,}", base),
            Segment(f"{loss(status.validation_loss):>9}", base),
            Segment(f"{loss(status.bits_per_byte):>8}", base),
            Segment(f"{compact(status.tokens_per_second):>9}", base),
            Segment(f"{age(0, status.age):>8}", self.style_of("muted")),
        ]


class RunsScreen(LeftOnce, ModalScreen[str | None]):
    """Choose a run. The answer is its name; overlays are changed in place."""

    DEFAULT_CSS = """
    RunsScreen { align: center middle; }
    RunsScreen > #runs-box {
        width: 94%; max-width: 110; height: 80%; background: $surface; border: round $primary;
        border-title-color: $accent; padding: 0 1;
    }
    RunsScreen Input { height: 1; border: none; padding: 0 1; background: $boost; }
    RunsScreen Input:focus { border: none; background: $primary 30%; }
    RunsScreen Rows { background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("run_picker")

    def __init__(self, run_client: RunClient, overlays: set[str]) -> None:
        super().__init__()
        self.run_client = run_client
        self.overlays = overlays

    def compose(self) -> ComposeResult:
        """Filter, list, and what the keys do."""
        with Vertical(id="runs-box") as box:
            box.border_title = safe(f"Runs in {self.run_client.root}")
            yield Input(placeholder="type / to filter by name")
            yield RunRows()
        yield KeyBar()

    def on_mount(self) -> None:
        """List the runs, again every second."""
        rows = self.query_one(RunRows)
        rows.overlays = self.overlays
        rows.followed = self.run_client.run.name if self.run_client.run else ""
        rows.focus()
        self._refresh_soon()
        self.set_interval(REFRESH_SECONDS, self._refresh_soon)

    def _refresh_soon(self) -> None:
        self.run_worker(self._refresh_rows(), group="runs", exclusive=True)

    async def _refresh_rows(self) -> None:
        listed = await self.run_client.run_rows()
        rows = self.query_one(RunRows)
        first = not rows.everything
        rows.show(listed)
        if first and rows.followed:
            names = [row.name for row in rows.rows]
            rows.cursor = names.index(rows.followed) if rows.followed in names else 0

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        self.query_one(RunRows).filter(event.value)

    def on_input_submitted(self) -> None:
        """Return to the list."""
        self.query_one(RunRows).focus()

    def on_rows_selected(self) -> None:
        """Follow the run."""
        current = self.query_one(RunRows).current
        if current is not None:
            self.dismiss(current.name)

    def action_overlay(self) -> None:
        """Draw the run behind the followed one, or stop."""
        rows = self.query_one(RunRows)
        if rows.current is not None and rows.current.name != rows.followed:
            self.overlays ^= {rows.current.name}
            rows.refresh()

    def action_filter(self) -> None:
        """Type a filter."""
        self.query_one(Input).focus()

    def action_leave(self) -> None:
        """Close without a choice."""
        self.dismiss(None)
