"""The table of checkpoints across runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.segment import Segment

from mamba_tui.backend.run_client import CheckpointRow, best_row
from mamba_tui.widgets.numbers import age, bytes_size, loss
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import pad

# column -> title, cells (0 = the remaining width), value to sort by
Column = tuple[str, int, Callable[[CheckpointRow], Any]]


def _known(value: float | None) -> float:
    return value if value is not None and not math.isnan(value) else math.inf


COLUMNS: dict[str, Column] = {
    "run": ("run", 0, lambda row: (row.run.name, -row.info.step)),
    "step": ("step", 9, lambda row: -row.info.step),
    "training": ("training", 9, lambda row: _known(row.info.train_loss)),
    "validation": ("valid.", 9, lambda row: _known(row.info.validation_loss)),
    "bits": ("bits/B", 8, lambda row: _known(row.info.bits_per_byte)),
    "time": ("age", 8, lambda row: -row.info.time),
    "size": ("size", 9, lambda row: -row.info.bytes),
}
SIGNS = 5


class CheckpointTable(Rows):
    """One checkpoint per row: pin, mark, best, latest; run; figures."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.everything: Sequence[CheckpointRow] = ()
        self.rows: list[CheckpointRow] = []
        self.pins: set[str] = set()
        self.marked: list[str] = []
        self.sort = "time"
        self.reverse = False
        self.needle = ""

    @property
    def row_count(self) -> int:
        """Checkpoints that pass the filter."""
        return len(self.rows)

    @property
    def current(self) -> CheckpointRow | None:
        """The checkpoint under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    def show(self, rows: Sequence[CheckpointRow]) -> None:
        """Show these checkpoints; the cursor starts at the best one of the run that saved last."""
        first_time = bool(rows) and not self.everything
        self.everything = rows
        self.reorder()
        best = best_row(rows, max(rows, key=lambda row: row.info.time).run.name) if first_time else None
        if best in self.rows:
            self.cursor = self.rows.index(best)

    def reorder(self) -> None:
        """Filter and sort again, pinned ones first."""
        key = self.current.key if self.current else ""
        low = self.needle.lower()
        rows = [row for row in self.everything if low in row.key.lower()]
        rows.sort(key=COLUMNS[self.sort][2], reverse=self.reverse)
        rows.sort(key=lambda row: row.key not in self.pins)
        self.rows = rows
        self.set_reactive(
            Rows.cursor,
            next((i for i, row in enumerate(rows) if row.key == key), min(self.cursor, len(rows))),
        )
        self.rows_changed()

    def header_segments(self, width: int) -> list[Segment]:
        """Titles; the sorted column is highlighted."""
        style, active = self.style_of("header"), self.style_of("accent")
        segments = [Segment(" " * SIGNS, style)]
        for name, (title, cells, _) in COLUMNS.items():
            room = cells or self.name_cells(width)
            text = title + (("↑" if self.reverse else "↓") if name == self.sort else "")
            segments.append(Segment(pad(text, room, right=cells > 0), active if name == self.sort else style))
        return segments

    def name_cells(self, width: int) -> int:
        """The width for the run's name."""
        return max(8, width - SIGNS - sum(cells for _, cells, _ in COLUMNS.values()))

    def column_at(self, x: int) -> str:
        """The column at a position in the header."""
        left = SIGNS
        for name, (_, cells, _) in COLUMNS.items():
            left += cells or self.name_cells(self.size.width)
            if x < left:
                return name
        return "size"

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """One checkpoint."""
        row = self.rows[index]
        info, base, muted = row.info, self.component(""), self.style_of("muted")
        number = self.marked.index(row.key) + 1 if row.key in self.marked else 0
        signs = ("◆" if row.key in self.pins else " ") + (str(number) if number else " ")
        segments = [
            Segment(" " + signs, self.style_of("accent")),
            Segment("★" if info.best else " ", self.style_of("accent")),
            Segment("»" if row.latest else " ", self.style_of("good")),
            Segment(pad(row.run.name, self.name_cells(width)), base),
        ]
        if info.problem:
            room = width - SIGNS - self.name_cells(width)
            return [*segments, Segment(f"{info.step:>9,}", muted),
                    Segment("  " + pad(info.problem, room - 11), self.style_of("problem"))]  # fmt: skip
        best = self.style_of("accent") if info.best else base
        return [
            *segments,
            Segment(f"{info.step:>9,}", base),
            Segment(f"{loss(info.train_loss):>9}", muted),
            Segment(f"{loss(info.validation_loss):>9}", best),
            Segment(f"{loss(info.bits_per_byte):>8}", base),
            Segment(f"{age(info.time):>8}", muted),
            Segment(f"{bytes_size(info.bytes):>9}", muted),
        ]
