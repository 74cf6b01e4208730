"""The table of runs: chosen columns, scrolled if they don't fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import BindingType
from textual.color import Color

from core.errors import UserError
from core.runs.listing.columns import USUAL, column, differing, sorted_by
from core.runs.listing.filters import compiled
from core.runs.listing.summary import UNREAD, RunSummary
from mamba_tui import keys
from mamba_tui.run_columns import reading
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import pad
from mamba_tui.wording import SIGN, STATE_COLOR

SIGNS = 3
SHORTEST_NAME, LONGEST_NAME = 10, 28


class RunTable(Rows):
    """One run per row: mark, name, then as many of the columns as fit."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("run_table")

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.everything: Sequence[RunSummary] = ()
        self.rows: list[RunSummary] = []
        self.marked: list[str] = []
        self.followed = ""
        self.columns: tuple[str, ...] = USUAL
        self.sort = "changed"
        self.reverse = False
        self.filter_text = ""
        self.problem = ""
        self.only_differences = False
        self.first_column = 0
        self._longest = 0
        self._differing: list[str] = []
        self._wanted = ""
        """The run to go to as soon as it is listed."""

    @property
    def row_count(self) -> int:
        """Runs that pass the filter."""
        return len(self.rows)

    @property
    def current(self) -> RunSummary | None:
        """The run under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    @property
    def chosen(self) -> list[RunSummary]:
        """The marked runs that exist, in the order they were marked; otherwise the one under the cursor."""
        by_name = {run.name: run for run in self.everything}
        marked = [by_name[name] for name in self.marked if name in by_name]
        return marked or ([self.current] if self.current is not None else [])

    def show(self, runs: Sequence[RunSummary]) -> None:
        """Show new summaries."""
        # Until all runs were looked at, the first row is another one each time; nobody chose it.
        at_first = self.cursor == 0 and any(run.state == UNREAD for run in self.everything)
        self.everything = runs
        self.reorder()
        if at_first:
            self.cursor = 0

    def renamed(self, old: str, new: str) -> None:
        """A run was renamed: its mark, and the cursor if it is there, follow."""
        self.marked = [new if name == old else name for name in self.marked]
        if self.current is not None and self.current.name == old:
            self._wanted = new

    def reorder(self) -> None:
        """Filter and sort again; the cursor stays on its run. An invalid filter keeps the previous rows."""
        name = self.current.name if self.current else ""
        if any(run.name == self._wanted for run in self.everything):
            name, self._wanted = self._wanted, ""
        try:
            test = compiled(self.filter_text)
            self.problem = ""
        except UserError as error:
            self.problem = str(error)
            return
        runs = [run for run in self.everything if test(run)]
        if self.only_differences:
            wanted = {run.name for run in self.compared}
            runs = [run for run in runs if run.name in wanted]
        if self.sort == "changed" and not self.reverse:
            self.rows = runs  # in their own order: living ones first
        else:
            self.rows = sorted_by(runs, self.sort, "sort", reverse=self.reverse)
        # Every row that is drawn asks for these.
        self._longest = max((len(run.name) for run in self.rows), default=0)
        self._differing = differing(self.rows) if self.only_differences else []
        at = next((i for i, run in enumerate(self.rows) if run.name == name), self.cursor)
        self.set_reactive(Rows.cursor, min(at, max(0, len(self.rows) - 1)))
        self.rows_changed()

    @property
    def compared(self) -> list[RunSummary]:
        """The runs whose differences are of interest: the marked ones, otherwise all that pass the filter."""
        marked = self.chosen if self.marked else []
        return marked if len(marked) > 1 else list(self.everything if self.only_differences else self.rows)

    # -------------------------------------------------------------- columns

    @property
    def shown_columns(self) -> tuple[str, ...]:
        """The columns beside the name."""
        if self.only_differences:
            return ("state", "best", *self._differing, "step")
        return tuple(name for name in self.columns if name != "name")

    def name_cells(self, width: int) -> int:
        """Room for names: what the longest needs, within limits."""
        return min(max(self._longest + 1, SHORTEST_NAME), LONGEST_NAME, max(SHORTEST_NAME, width // 3))

    def fitting(self, width: int) -> list[tuple[str, int]]:
        """The columns that fit from `first_column` on, with their widths; a space is between any two."""
        left = width - SIGNS - self.name_cells(width) - 1  # the last cell says that there are more
        fitting_columns: list[tuple[str, int]] = []
        columns = self.shown_columns
        self.first_column = min(self.first_column, max(0, len(columns) - 1))
        for name in columns[self.first_column :]:
            cells = reading(name).cells
            if cells + 1 > left and fitting_columns:
                break
            fitting_columns.append((name, min(cells, max(1, left - 1))))
            left -= cells + 1
        return fitting_columns

    def action_scroll_columns(self, by: int) -> None:
        """Show columns further right or left."""
        width = self.size.width
        shown = self.fitting(width)
        at_end = self.first_column + len(shown) >= len(self.shown_columns)
        if by < 0 or not at_end:
            self.first_column = max(0, self.first_column + by)
            self.refresh()

    def column_at(self, x: int) -> str:
        """The column at a position in the header."""
        left = SIGNS + self.name_cells(self.size.width)
        if x < left:
            return "name"
        for name, cells in self.fitting(self.size.width):
            left += cells + 1
            if x < left:
                return name
        return ""

    def can_sort(self, name: str) -> bool:
        """Whether it is a column that exists."""
        try:
            return bool(column(name, "sort"))
        except UserError:
            return False

    # -------------------------------------------------------------- drawing

    def header_segments(self, width: int) -> list[Segment]:
        """Titles; the sorted one is highlighted, arrows show that there are more columns."""
        style, active = self.style_of("header"), self.style_of("accent")
        arrow = "↑" if self.reverse else "↓"
        title = "run" + (arrow if self.sort == "name" else "")
        back = "‹" if self.first_column else " "
        segments = [
            Segment(f" {back} ", active),
            Segment(pad(title, self.name_cells(width)), active if self.sort == "name" else style),
        ]
        shown = self.fitting(width)
        for name, cells in shown:
            one, sorted_here = reading(name), name == self.sort
            text = one.title + (arrow if sorted_here else "")
            segments.append(
                Segment(" " + pad(text, cells, right=not one.left), active if sorted_here else style)
            )
        if self.first_column + len(shown) < len(self.shown_columns):
            used = SIGNS + self.name_cells(width) + sum(cells + 1 for _, cells in shown)
            segments.append(Segment(" " * (width - used - 1) + "›", active))
        return segments

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """One run."""
        run, base = self.rows[index], self.component("")
        mark = str(self.marked.index(run.name) + 1)[-1] if run.name in self.marked else " "
        follow = "▸" if run.name == self.followed else " "
        segments = [
            Segment(f"{follow}{mark} ", self.style_of("accent")),
            Segment(pad(run.name, self.name_cells(width)), base),
        ]
        for name, cells in self.fitting(width):
            one = reading(name)
            text, style = one.text(run), base
            if name == "state":
                text = f"{SIGN.get(run.state, '◌')} {text}"
                style = base + self._state_style(run.state)
            elif name in ("note", "tags"):
                style = self.style_of("muted")
            segments.append(Segment(" " + pad(text, cells, right=not one.left), style))
        return segments

    def _state_style(self, state: str) -> Style:
        variable = STATE_COLOR.get(state, "accent")
        return Style(color=Color.parse(self.app.theme_variables.get(variable, "#888888")).rich_color)
