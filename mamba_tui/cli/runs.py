"""`mamba-tui runs`: the list of runs, and `runs rename, note, tag, delete, undelete`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from mamba_tui.cli.run_options import add_run_place, checkpoints_folder

if TYPE_CHECKING:
    from pathlib import Path

    from core.runs import Run
    from core.runs.listing.summary import RunSummary

STYLES = {"training": "green", "finished": "cyan", "failed": "red", "died": "red", "paused": "yellow"}
PIPE_WIDTH = 250
DEFAULT_COLUMNS = "name,state,step,best,last,lr,parameters,tokens,time,changed,size,tags,learning"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "runs",
        help="list, filter and compare runs; rename, note, tag, delete, undelete them",
        description="List the runs. Losses are validation, bits per byte.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    parser.add_argument(
        "--sort", default="name", metavar="COLUMN", help="best, lr, any setting ... (default name)"
    )
    parser.add_argument("--reverse", action="store_true", help="with --sort: reverse the order")
    parser.add_argument(
        "--filter", default="", metavar="TERMS", help="such as 'lr>1e-3 mamba2 -failed tags=sweep-001'"
    )
    parser.add_argument(
        "--columns", default=DEFAULT_COLUMNS, metavar="A,B",
        help=f"columns, which may be any setting (default {DEFAULT_COLUMNS})",
    )  # fmt: skip
    parser.add_argument("--differences", action="store_true", help="show only the settings that differ")
    add_run_place(parser)
    parser.set_defaults(action=None)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", prog="mamba-tui runs")
    _add_actions(actions)


def _add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rename = actions.add_parser("rename", help="rename a run")
    rename.add_argument("run", metavar="RUN", help="name of the run")
    rename.add_argument("name", metavar="NEW", help="its new name")
    note = actions.add_parser("note", help="write a note on a run, or show it")
    note.add_argument("run", metavar="RUN", help="name of the run")
    note.add_argument("text", metavar="TEXT", nargs="?", help='the note; "" removes it (default: show it)')
    tag = actions.add_parser("tag", help="tag a run")
    tag.add_argument("run", metavar="RUN", help="name of the run")
    tag.add_argument("tags", metavar="TAG", nargs="*", help="tags to add (default: show its tags)")
    tag.add_argument(
        "--remove", action="append", default=[], metavar="TAG", help="a tag to remove; repeatable"
    )
    delete = actions.add_parser("delete", help="delete a run; undelete brings it back")
    delete.add_argument("run", metavar="RUN", help="name of the run")
    delete.add_argument(
        "--forever", action="store_true", help="free the space of a run that was deleted before"
    )
    undelete = actions.add_parser("undelete", help="bring back a deleted run")
    undelete.add_argument("run", metavar="RUN", nargs="?", help="name of the run (default: list them)")
    for parser in (rename, note, tag, delete, undelete):
        # As for `runs` itself. Without a default, so that a value given before the action remains.
        parser.add_argument(
            "--checkpoints", default=argparse.SUPPRESS, metavar="DIR", help="folder of the runs"
        )


def run(arguments: argparse.Namespace) -> int:
    """List the runs or carry out an action. Returns the exit code."""
    root = checkpoints_folder(arguments)
    if arguments.action is not None:
        print(_ACTIONS[arguments.action](arguments, root))
        return 0
    return _list(arguments, root)


def _list(arguments: argparse.Namespace, root: Path) -> int:
    from core.runs.listing.columns import chosen, differing, sorted_by
    from core.runs.listing.filters import compiled
    from core.runs.listing.run_list import RunList

    test = compiled(arguments.filter, "--filter")
    columns = chosen(arguments.columns, "--columns")
    rows = RunList(root).read_all()
    known = len(rows)
    rows = [row for row in rows if test(row)]
    rows = sorted_by(rows, arguments.sort, "--sort", reverse=arguments.reverse)
    if arguments.json:
        for row in rows:
            print(json.dumps(_values(row)))
        return 0
    if arguments.differences:
        columns = ("name", "best", *differing(rows))
    _table(rows, columns, root.name, known)
    return 0


def _table(rows: list[RunSummary], columns: tuple[str, ...], folder: str, known: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mamba_tui.run_columns import reading
    from mamba_tui.widgets.safe_text import visible

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    if not rows:
        none = f"No runs in {visible(folder)} yet. Start one: mamba-tui launch"
        console.print(f"None of {known:,} runs pass the filter" if known else none, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        one = reading(name)
        table.add_column(
            one.title, justify="left" if one.left else "right", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        style = {"state": STYLES.get(row.state, "")}
        table.add_row(
            *(Text(visible(reading(name).text(row)), style=style.get(name, "")) for name in columns)
        )
    console.print(table)


def _values(row: RunSummary) -> Any:
    """A run as JSON; numbers that aren't finite are strings, as in events.jsonl."""
    from core.runs import status
    from core.runs.event_fields import plain

    summary = {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if field.name not in ("run", "complete", "target", "last", "notes")
    }
    more = {
        "bits_per_byte": row.last,
        "best_bits_per_byte": row.best,
        "shape": row.shape,
        "mixers": list(row.mixer_names),
        "tokens_per_step": row.batch,
        "note": row.notes.note,
        "tags": list(row.notes.tags),
    }
    values = {"name": row.name, "path": str(row.run.path)} | dataclasses.asdict(status(row.run))
    del summary["best"]
    return plain(values | summary | more)


def _rename(arguments: argparse.Namespace, root: Path) -> str:
    from core.sweeps.rename import rename

    rename(_find(root, arguments.run), arguments.name)
    return f"{_shown(arguments.run)} is now {_shown(arguments.name)}"


def _note(arguments: argparse.Namespace, root: Path) -> str:
    from core.runs.listing.notes import Notes, read_notes, write_notes

    one = _find(root, arguments.run)
    notes = read_notes(one)
    if arguments.text is None:
        return _shown(notes.note) or f"{_shown(one.name)} has no note"
    write_notes(one, Notes(arguments.text, notes.tags))
    return f"Note on {_shown(one.name)} {'saved' if arguments.text else 'removed'}"


def _tag(arguments: argparse.Namespace, root: Path) -> str:
    from core.runs.listing.notes import change_tags

    one = _find(root, arguments.run)
    notes = change_tags(one, [*arguments.tags, *(f"-{tag}" for tag in arguments.remove)])
    return f"{_shown(one.name)}: {_shown(', '.join(notes.tags)) or 'no tags'}"


def _delete(arguments: argparse.Namespace, root: Path) -> str:
    from core.runs.listing.trash import delete_for_good, delete_run, newest_deleted
    from mamba_tui.widgets.numbers import bytes_size

    name = _shown(arguments.run)
    if arguments.forever:
        return f"{name} is gone; {bytes_size(delete_for_good(newest_deleted(root, arguments.run)))} freed"
    delete_run(_find(root, arguments.run))
    return (
        f"{name} deleted. mamba-tui runs undelete {name} brings it back; "
        f"mamba-tui runs delete {name} --forever frees its space"
    )


def _undelete(arguments: argparse.Namespace, root: Path) -> str:
    from core.runs.listing.trash import deleted_runs, newest_deleted, undelete_run

    if arguments.run is None:
        names = dict.fromkeys(_shown(one.name) for one in deleted_runs(root))
        return "\n".join(names) if names else "Nothing to undelete"
    undelete_run(newest_deleted(root, arguments.run))
    return f"{_shown(arguments.run)} is back"


_ACTIONS = {"rename": _rename, "note": _note, "tag": _tag, "delete": _delete, "undelete": _undelete}


def _find(root: Path, name: str) -> Run:
    from mamba_tui.cli.launch import find_run

    return find_run(root, name)


def _shown(text: str) -> str:
    from mamba_tui.widgets.safe_text import visible

    return visible(text)
