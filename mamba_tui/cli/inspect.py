"""`mamba-tui inspect`: what each layer of a checkpoint does with a text.

The model is in another process (`core.inspection.server`); this one shows its report.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.system.hardware import resolve_device
from core.system.json_lines_client import Event
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, check_texts, whole_number
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose, unverified
from mamba_tui.cli.inspect_tables import show_layers
from mamba_tui.cli.interrupts import answer_of
from mamba_tui.cli.progress_bar import progress_bar
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.safe_text import visible

OWN = ("event", "id")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="look inside the layers of a checkpoint while it reads a text",
        description="Look inside the layers of a checkpoint while it reads a text: what each would say next, "
        "where attention looks, how long Mamba remembers, how much each layer adds.",
    )
    add_checkpoint_options(parser)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text", nargs="+", action="extend", metavar="PATH",
        help="text files or folders, read from their beginning (default: the run's last validation text)",
    )  # fmt: skip
    text.add_argument(
        "--tokens", type=whole_number, default=512, metavar="N", help="the most tokens to read (default 512)"
    )
    look = parser.add_argument_group("what to look at")
    look.add_argument(
        "--layer", type=whole_number, metavar="N",
        help="one layer, counted from 0, with every head or channel of it (default: all layers)",
    )  # fmt: skip
    look.add_argument(
        "--token", type=whole_number, metavar="N",
        help="the token after which to show each layer's prediction, counted from 0 (default: the last)",
    )  # fmt: skip
    look.add_argument(
        "--top", type=whole_number, default=3, metavar="N", help="predictions to show per layer (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Inspect and print. Returns the exit code."""
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    if arguments.text is not None:
        check_texts(arguments.text)
    report = answer_of(
        "core.inspection.server",
        "the inspection",
        "inspect",
        lambda events: _report(events, checkpoint, words),
        checkpoint=str(checkpoint),
        device=arguments.device,
        texts=arguments.text,
        count=arguments.tokens,
        token=-1 if arguments.token is None else arguments.token,
        layer=-1 if arguments.layer is None else arguments.layer,
        top=arguments.top,
    )
    if report is None:
        return EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps({"checkpoint": str(checkpoint), **report}, indent=1))
    else:
        show_layers(report)
    return 0


def _report(events: Iterator[Event], checkpoint: Path, words: str) -> dict[str, Any]:
    """The process's report, showing progress in the meantime."""
    with progress_bar() as tell:
        for event in events:
            match event["event"]:
                case "loaded":
                    note(f"{words}; {event['parameters']:,} parameters on {event['device']}")
                    if not event["verified"]:
                        note(unverified(checkpoint))
                case "progress":
                    tell(event["share"], visible(event["text"]))
                case "report":
                    return {key: value for key, value in event.items() if key not in OWN}
    raise AssertionError("the client raises an error if no answer comes")
