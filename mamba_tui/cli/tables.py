"""A table on standard output: aligned for people on a terminal, tab-separated elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[str]


def show_table(titles: Row, rows: Sequence[Row], more: str = "") -> None:
    """A table whose first column gets the remaining width."""
    if not sys.stdout.isatty():
        for row in (titles, *rows):
            print("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    table.add_column(titles[0], no_wrap=True, overflow="ellipsis")
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False, markup=False)
    console.print(table)
    if more:
        console.print(f"... {more}", style="dim")
