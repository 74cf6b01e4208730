"""`mamba-tui compress` and `decompress`: make any file small with a model that has learned similar text.

The model is in another process (`core.compression.server`); this one shows progress and figures.
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
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, whole_number
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose
from mamba_tui.cli.compressors import LIMIT, compare
from mamba_tui.cli.interrupts import answer_of
from mamba_tui.cli.progress_bar import progress_bar
from mamba_tui.cli.text_output import note
from mamba_tui.widgets.numbers import bytes_size, duration
from mamba_tui.widgets.safe_text import visible

SUFFIX = ".mtz"
MOST_STREAMS = 4096


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add both commands to the parser."""
    compress = commands.add_parser(
        "compress",
        help="make a file small with a checkpoint, without loss",
        description="Compress any file without loss, using the probabilities that a checkpoint gives each "
        "next token. Decompressing needs the same checkpoint and the same kind of machine "
        "(docs/compression.md).",
    )
    compress.add_argument("file", metavar="FILE", help="the file to compress; it isn't changed")
    compress.add_argument("-o", "--output", metavar="FILE", help=f"what to write (default FILE{SUFFIX})")
    compress.add_argument(
        "--streams", type=whole_number, default=0, metavar="N",
        help="parts of the text that are compressed in parallel: more are faster and compress a little less "
        "(default: chosen by the file's size)",
    )  # fmt: skip
    compress.add_argument(
        "--compare", action="store_true", help="compare with gzip, xz and, if installed, PPMd"
    )
    decompress = commands.add_parser(
        "decompress",
        help="restore a compressed file",
        description="Restore a file that mamba-tui compress made, with the same checkpoint. Damaged files "
        "and other models are refused; wrong bytes are never written.",
    )
    decompress.add_argument("file", metavar="FILE", help="the compressed file; it isn't changed")
    decompress.add_argument(
        "-o", "--output", metavar="FILE", help=f"what to write (default: FILE without {SUFFIX})"
    )
    for parser in (compress, decompress):
        parser.add_argument("--force", action="store_true", help="replace the output if it exists")
        parser.add_argument(
            "--workers", type=whole_number, default=0, metavar="N",
            help="parallel processes on CPU; affects only the speed (default: the number of cores)",
        )  # fmt: skip
        add_checkpoint_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compress or decompress one file. Returns the exit code."""
    options: dict[str, Any] = {"workers": arguments.workers}
    if arguments.command == "compress":
        if not 0 <= arguments.streams <= MOST_STREAMS:
            raise UserError(
                f"--streams is {arguments.streams:,}; accepted: a whole number from 1 to {MOST_STREAMS:,}"
            )
        options["streams"] = arguments.streams
    source = _source(arguments.file)
    target = _target(arguments, source)
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    note(words)
    places = {"source": str(source), "target": str(target), "checkpoint": str(checkpoint)}
    done = answer_of(
        "core.compression.server",
        f"the {arguments.command}ion process",
        arguments.command,
        _done,
        **places,
        device=arguments.device,
        **options,
    )
    if done is None:
        note("stopped; nothing was written")
        return EXIT_INTERRUPTED
    print(_summary(arguments.command, target, done))
    if arguments.command == "compress" and arguments.compare:
        _compare(source, done)
    return 0


def _source(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"FILE is {visible(path)}, which is not a file that can be read; accepted: any file")
    if not os.access(path, os.R_OK):
        raise UserError(f"FILE is {visible(path)}, which cannot be read; accepted: any file that can be")
    return path


def _target(arguments: argparse.Namespace, source: Path) -> Path:
    """The file to write. Raises UserError if it exists and must not be replaced."""
    if arguments.output:
        target = Path(arguments.output)
    elif arguments.command == "compress":
        target = source.with_name(source.name + SUFFIX)
    elif source.name.endswith(SUFFIX) and source.name != SUFFIX:
        target = source.with_name(source.name.removesuffix(SUFFIX))
    else:
        raise UserError(
            f"{visible(source)} does not end in {SUFFIX}, so it doesn't tell the name of the restored file"
            "it; accepted: -o FILE"
        )
    if os.path.lexists(target):
        if target.exists() and os.path.samefile(source, target):
            raise UserError(f"-o is {visible(target)}, the file to read; accepted: another file")
        if not arguments.force or not target.is_file():
            raise UserError(
                f"{visible(target)} exists; accepted: -o with another name, or --force for a file"
            )
    elif not target.absolute().parent.is_dir():
        raise UserError(f"-o is {visible(target)}, whose folder does not exist; accepted: a file in a folder")
    return target


def _done(events: Iterator[Event]) -> Event:
    """The last event of the answer, showing progress in the meantime."""
    began, first = time.monotonic(), 0
    with progress_bar() as tell:
        for event in events:
            if event["event"] == "done":
                return event
            done, size = event["done"], event["size"]
            if not first and done:
                began, first = time.monotonic(), done
            seconds = time.monotonic() - began
            speed = (done - first) / seconds if seconds > 0.5 else 0.0
            left = f", {duration((size - done) / speed)} left" if speed else ""
            share = done / size if size else 1.0
            tell(share, f"{bytes_size(done)} of {bytes_size(size)}, {bytes_size(speed)}/s{left}")
    raise AssertionError("the client raises an error if no answer comes")


def _summary(command: str, target: Path, done: Event) -> str:
    size, small, seconds = done["size"], done["compressed"], max(done["seconds"], 1e-9)
    speed = f"{bytes_size(size / seconds)}/s"
    if command == "decompress":
        return f"{visible(target)}: {size:,} bytes from {small:,}; {speed}"
    plural = "" if done["streams"] == 1 else "s"
    ratio = f", {small / size:.1%}, {8 * small / size:.3f} bits/byte" if size else ""
    return (
        f"{visible(target)}: {size:,} bytes to {small:,}{ratio}; {done['streams']:,} stream{plural}, {speed}"
    )


def _compare(source: Path, done: Event) -> None:
    if done["size"] > LIMIT:
        note(f"--compare reads files up to {bytes_size(LIMIT)}; {visible(source)} is larger")
        return
    ours, sizes = done["compressed"], compare(source.read_bytes())
    for name, size in sizes.items():
        if size is None:
            print(f"{name:10} not installed")
        else:
            relation = f"{1 - ours / size:+.1%} smaller with the model" if size else ""
            bits = f"{8 * size / done['size']:.3f} bits/byte" if done["size"] else ""
            print(f"{name:10} {size:>12,} bytes  {bits}  {relation}".rstrip())
