"""`mamba-tui eval`: how well a checkpoint predicts texts, in numbers.

The model is in another process (`core.evaluation.server`); this one shows its report.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.runs.event_fields import NON_FINITE
from core.system.hardware import resolve_device
from core.system.json_lines_client import Event
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, add_text_option, check_texts
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose, unverified
from mamba_tui.cli.eval_tables import show_report
from mamba_tui.cli.interrupts import answer_of
from mamba_tui.cli.progress_bar import progress_bar
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.numbers import compact, duration
from mamba_tui.widgets.safe_text import visible

OWN = ("event", "id")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="measure how well a checkpoint predicts texts",
        description="Measure how well a checkpoint predicts texts: with its state carried through each "
        "document, and in windows of block_size tokens that start from an empty state.",
    )
    add_checkpoint_options(parser)
    text = parser.add_argument_group("text")
    add_text_option(text)
    text.add_argument("--all", action="store_true", help="list every document (default: the first 40)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the figures. Returns the exit code."""
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    check_texts(arguments.text)
    report = answer_of(
        "core.evaluation.server",
        "the evaluation",
        "evaluate",
        lambda events: _report(events, checkpoint, words),
        checkpoint=str(checkpoint),
        device=arguments.device,
        texts=arguments.text,
    )
    if report is None:
        return EXIT_INTERRUPTED
    for name, reason in report["skipped"].items():
        note(f"not read: {name}, which {reason}")
    if report["tokens"] == 0:
        note("stopped before anything was read")
        return EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show_report(_with_numbers(report), every=arguments.all)
    if not report["complete"]:
        note(f"stopped: the figures are of the first {report['share']:.0%} of the text")
    return 0 if report["complete"] else EXIT_INTERRUPTED


def _report(events: Iterator[Event], checkpoint: Path, words: str) -> dict[str, Any]:
    """The process's whole report as one object, showing progress in the meantime."""
    report: dict[str, Any] = {"checkpoint": str(checkpoint)}
    documents: list[dict[str, Any]] = []
    with progress_bar() as tell:
        for event in events:
            values = {key: value for key, value in event.items() if key not in OWN}
            match event["event"]:
                case "loaded":
                    report |= values
                    note(f"{words}; {event['parameters']:,} parameters on {event['device']}")
                    if not event["verified"]:
                        note(unverified(checkpoint))
                case "progress":
                    tell(event["share"], _progress_words(event))
                case "document":
                    documents.append(values)
                case "done":
                    return report | values | {"documents": documents, "document_count": values["documents"]}
    raise AssertionError("the client raises an error if no answer comes")


def _with_numbers(value: Any) -> Any:
    """The report with numbers in place of the texts that JSON needs for them."""
    if isinstance(value, dict):
        return {key: item if key == "name" else _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _progress_words(event: Event) -> str:
    """`2.9012 nats/token, 12 k tokens/s, 8 s left, new-book.txt`."""
    mean = event["nats_per_token"]
    figures = f"{mean:.4f} nats/token, " if isinstance(mean, float) and math.isfinite(mean) else ""
    speed, left = compact(event["tokens_per_second"]), duration(event["seconds_left"])
    return f"{figures}{speed} tokens/s, {left} left, {visible(event['name'])}"
