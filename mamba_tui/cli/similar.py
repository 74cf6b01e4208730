"""`mamba-tui similar`: the passages of texts that are most similar to a passage, by a checkpoint's features.

The model is in another process (`core.features.server`); this one shows progress and the passages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from typing import Any

from core.errors import UserError
from core.system.hardware import resolve_device
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, add_text_option, check_texts, whole_number
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose
from mamba_tui.cli.embed import last_event
from mamba_tui.cli.interrupts import answer_of
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.numbers import duration
from mamba_tui.widgets.safe_text import visible

MOST_HITS = 1_000
SNIPPET_LINES = 3
NARROWEST = 40


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "similar",
        help="find the passages of texts that are most similar to a passage",
        description="Find the passages of texts that are most similar to a passage, by a checkpoint's "
        "features. The texts' features are kept in the user's cache folder, so that later searches are "
        "fast (docs/features.md).",
    )
    parser.add_argument(
        "passage", metavar="PASSAGE", help="the passage to search for; - reads standard input"
    )
    text = parser.add_argument_group("text")
    add_text_option(text)
    text.add_argument(
        "--per", default="100 words", metavar="UNIT",
        help='the kind of passage: line, paragraph, document, or a length such as "200 words" '
        '(default "100 words")',
    )  # fmt: skip
    rows = parser.add_argument_group("search")
    rows.add_argument(
        "-n", dest="count", type=whole_number, default=10, metavar="N",
        help=f"passages to show, at most {MOST_HITS:,} (default 10)",
    )  # fmt: skip
    rows.add_argument(
        "--layer", default="waist", metavar="L",
        help="waist (the last narrowest layer, the default), or a layer's number, counted from 0",
    )  # fmt: skip
    rows.add_argument("--json", action="store_true", help="print the passages as one JSON object")
    add_checkpoint_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search the texts. Returns the exit code."""
    if not 1 <= arguments.count <= MOST_HITS:
        raise UserError(f"-n is {arguments.count:,}; accepted: a whole number from 1 to {MOST_HITS:,}")
    passage = sys.stdin.read() if arguments.passage == "-" else arguments.passage
    if not passage.strip():
        raise UserError("PASSAGE is empty; accepted: some words of text")
    check_texts(arguments.text)
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    note(words)
    options = {key: getattr(arguments, key) for key in ("device", "layer", "per", "count")}
    options |= {"passage": passage, "texts": arguments.text, "checkpoint": str(checkpoint)}
    done = answer_of("core.features.server", "the search process", "similar", last_event, **options)
    if done is None:
        note("stopped; files that were read to the end stay indexed")
        return EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps({key: value for key, value in done.items() if key not in ("event", "id")}, indent=2))
        return 0
    show(done)
    return 0


def show(done: dict[str, Any]) -> None:
    """The passages, each with its position and its beginning."""
    width = max(NARROWEST, shutil.get_terminal_size().columns)
    for number, hit in enumerate(done["hits"], 1):
        document = f", document {hit['document']:,}" if hit["document"] > 1 else ""
        place = f"{visible(hit['file'])}{document}, character {hit['character']:,}"
        print(f"{number:>3}  {hit['nearness']:.3f}  {place}")
        words = textwrap.shorten(visible(hit["text"]), SNIPPET_LINES * (width - 5), placeholder=" ...")
        print(textwrap.fill(words, width, initial_indent=" " * 5, subsequent_indent=" " * 5) + "\n")
    for name, reason in done["skipped"].items():
        note(f"not read: {name} {reason}")
    files = f"{done['files']:,} file{'' if done['files'] == 1 else 's'}"
    read = f", {done['indexed']:,} read by the model now" if done["indexed"] else ""
    note(f"{done['passages']:,} passages in {files}{read}; {duration(done['seconds'])}")
