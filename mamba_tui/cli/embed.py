"""`mamba-tui embed`: a layer's features of texts, as rows of numbers in a file.

The model is in another process (`core.features.server`); this one shows progress.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.system.hardware import resolve_device
from core.system.json_lines_client import Event
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, add_text_option, check_texts
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose
from mamba_tui.cli.interrupts import answer_of
from mamba_tui.cli.progress_bar import progress_bar
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.numbers import bytes_size, duration
from mamba_tui.widgets.safe_text import visible


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "embed",
        help="compute features of texts with a layer of a checkpoint",
        description="Compute features of texts with a layer of a checkpoint: one row of numbers per passage, "
        "the mean over its tokens, with the state carried through each document (docs/features.md).",
    )
    text = parser.add_argument_group("text")
    add_text_option(text)
    text.add_argument(
        "--per", default="paragraph", metavar="UNIT",
        help='what a row describes: token, line, paragraph, document, or a length such as "200 words" '
        "(default paragraph)",
    )  # fmt: skip
    rows = parser.add_argument_group("features")
    rows.add_argument(
        "--layer", default="waist", metavar="L",
        help="waist (the last narrowest layer, the default), or a layer's number, counted from 0",
    )  # fmt: skip
    rows.add_argument(
        "--out", required=True, metavar="FILE",
        help=".npz (features, documents and positions), .npy (features alone) or .parquet (needs pyarrow)",
    )  # fmt: skip
    rows.add_argument("--dtype", default="float32", metavar="T", help="float32 (the default) or float16")
    rows.add_argument("--force", action="store_true", help="replace the file if it exists")
    add_checkpoint_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Embed the texts. Returns the exit code."""
    out = Path(arguments.out)
    if os.path.lexists(out) and not (arguments.force and out.is_file()):
        raise UserError(
            f"--out is {visible(out)}, which exists; accepted: another name, or --force for a file"
        )
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out is {visible(out)}, whose folder does not exist; accepted: a file in a folder")
    check_texts(arguments.text)
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    note(words)
    options = {key: getattr(arguments, key) for key in ("device", "layer", "per", "out", "dtype")}
    options |= {"texts": arguments.text, "checkpoint": str(checkpoint)}
    done = answer_of("core.features.server", "the embedding process", "embed", last_event, **options)
    if done is None:
        note("stopped; nothing was written")
        return EXIT_INTERRUPTED
    print(f"{visible(out)}: {done['rows']:,} rows of {done['width']:,} numbers, {duration(done['seconds'])}")
    return 0


def last_event(events: Iterator[Event]) -> Event:
    """The last event of an answer of `core.features.server`, showing progress in the meantime."""
    began = time.monotonic()
    with progress_bar() as tell:
        for event in events:
            if event["event"] == "done":
                return event
            share = event["done"] / max(1, event["size"])
            left = (time.monotonic() - began) * (1 / max(share, 1e-9) - 1)
            tell(share, f"{bytes_size(event['done'])}, {duration(left)} left, {visible(event['name'])}")
    raise AssertionError("the client raises an error if no answer comes")
