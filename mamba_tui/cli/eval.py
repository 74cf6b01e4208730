"""`mamba-tui eval`: how well a checkpoint predicts texts, in figures.

The model lives in a process of its own (`core.evaluation.server`); this side shows what it reports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runs.event_fields import NON_FINITE
from core.system.hardware import resolve_device
from core.system.json_lines_client import BlockingClient, Event
from core.system.processes import module_command
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose, unverified
from mamba_tui.cli.eval_tables import show_report
from mamba_tui.cli.interrupts import INTERRUPTED, canceling_on_interrupt
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.numbers import compact, duration
from mamba_tui.widgets.safe_text import clip

PLAIN_LINE_SECONDS = 5.0
OWN = ("event", "id")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="measure how well a checkpoint predicts texts",
        description="Measure how well a checkpoint predicts texts: with its state carried through each "
        "document, and in windows of block_size tokens that begin from an empty state.",
    )
    add_checkpoint_options(parser)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text", nargs="+", action="extend", required=True, metavar="PATH",
        help="text files, and folders of .txt and .txt.gz files; repeatable",
    )  # fmt: skip
    text.add_argument("--all", action="store_true", help="list every document (default: the first 40)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the figures. Returns the exit code."""
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    texts = [_existing(path) for path in arguments.text]
    with BlockingClient(module_command("core.evaluation.server"), "the evaluation") as client:
        request = client.send("evaluate", checkpoint=str(checkpoint), device=arguments.device, texts=texts)
        with canceling_on_interrupt(client, request) as interrupts:
            try:
                report = _report(client, request, checkpoint, words)
            except UserError:
                if interrupts:
                    return INTERRUPTED
                raise
    for name, reason in report["skipped"].items():
        note(f"not read: {name}, which {reason}")
    if report["tokens"] == 0:
        note("stopped before anything was read")
        return INTERRUPTED
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show_report(_with_numbers(report), every=arguments.all)
    if not report["complete"]:
        note(f"stopped: the figures are of the first {report['share']:.0%} of the text")
    return 0 if report["complete"] else INTERRUPTED


def _existing(path: str) -> str:
    """The path, if there is something. Raises UserError."""
    if not path or not os.path.lexists(path):
        raise UserError(f"--text is {path!r}, which does not exist; accepted: text files and folders")
    if not os.access(path, os.R_OK):
        raise UserError(f"--text is {path!r}, which cannot be read; accepted: text files and folders")
    return path


def _report(client: BlockingClient, request: int, checkpoint: Path, words: str) -> dict[str, Any]:
    """Everything the process reports, as one object; progress is shown meanwhile."""
    report: dict[str, Any] = {"checkpoint": str(checkpoint)}
    documents: list[dict[str, Any]] = []
    with _progress() as tell:
        for event in client.events(request):
            values = {key: value for key, value in event.items() if key not in OWN}
            match event["event"]:
                case "loaded":
                    report |= values
                    note(f"{words}; {event['parameters']:,} parameters on {event['device']}")
                    if not event["verified"]:
                        note(unverified(checkpoint))
                case "progress":
                    tell(event)
                case "document":
                    documents.append(values)
                case "done":
                    return report | values | {"documents": documents, "document_count": values["documents"]}
    raise AssertionError("the client raises an error where no answer comes")


def _with_numbers(value: Any) -> Any:
    """The report with numbers in place of the texts that stand for what JSON can't hold."""
    if isinstance(value, dict):
        return {key: item if key == "name" else _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Something to tell of progress: a bar on a terminal, a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(event: Event) -> None:
            nonlocal last
            if time.monotonic() - last > PLAIN_LINE_SECONDS:
                last = time.monotonic()
                print(f"{event['share']:.0%}  {_progress_words(event, 200)}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("loading", total=None)

        def bar(event: Event) -> None:
            words = _progress_words(event, max(10, console.width - 22))
            bars.update(task, total=1.0, completed=event["share"], description=words)

        yield bar


def _progress_words(event: Event, cells: int) -> str:
    """`2.9012 nats/token, 12 k tokens/s, 8 s left, new-book.txt`."""
    mean = event["nats_per_token"]
    figures = f"{mean:.4f} nats/token, " if isinstance(mean, float) and math.isfinite(mean) else ""
    speed, left = compact(event["tokens_per_second"]), duration(event["seconds_left"])
    return clip(f"{figures}{speed} tokens/s, {left} left, {event['name']}", cells)
