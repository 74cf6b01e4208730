"""The table of events in docs/events.md, generated from the classes in `events`.

`python -m core.runs.event_docs` updates the page; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from core.runs.events import KINDS, Event, fields_of
from core.system.files import write_atomic

PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"
HEAD = "| kind | fields | when |\n| --- | --- | --- |\n"


def table() -> str:
    """A row for each kind of event: its fields, and its docstring."""
    return HEAD + "".join(map(_row, KINDS.values()))


def _row(kind: type[Event]) -> str:
    fields = fields_of(kind)[1:]  # not `time`, which all have
    words = ", ".join(f"`{one.name}` {one.made_of.word}{'?' * one.optional}" for one in fields)
    when = " ".join((kind.__doc__ or "").split())
    return f"| `{kind.kind}` | {words} | {when} |\n"


def with_table(page: str) -> str:
    """The page with its table replaced."""
    start = page.index(HEAD)
    end = page.index("\n\n", start)
    return page[:start] + table() + page[end + 1 :]


if __name__ == "__main__":
    write_atomic(PAGE, with_table(PAGE.read_text()).encode(), private=False)
    print(f"wrote {PAGE}")
