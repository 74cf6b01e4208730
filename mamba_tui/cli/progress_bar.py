"""The progress of another process: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from mamba_tui.widgets.safe_text import clip

PLAIN_LINE_SECONDS = 5.0
BAR = 20


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Yields a function that shows progress: the share that is done, 0 to 1, and a few words."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(share: float, words: str) -> None:
            nonlocal last
            if time.monotonic() - last > PLAIN_LINE_SECONDS:
                last = time.monotonic()
                print(f"{share:.0%}  {words}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=BAR), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("loading", total=None)

        def bar(share: float, words: str) -> None:
            description = clip(f"{share:.0%}  {words}", max(10, console.width - BAR - 2))
            bars.update(task, total=1.0, completed=share, description=description)

        yield bar
