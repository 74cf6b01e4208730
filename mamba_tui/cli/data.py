"""`mamba-tui data info|prepare|sample|clean`: inspect, prepare or clean up the training text."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from core.config.schema import RunConfig
    from core.data.corpus import Corpus, FileReport, Progress

MOST_ROWS = 100
MOST_NOTES = 40


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions to the parser."""
    from mamba_tui.cli.arguments import whole_number
    from mamba_tui.cli.run_options import add_configuration_options

    parser = commands.add_parser("data", help="inspect, prepare or clean up the training text")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser(
        "info",
        help="list every file: encoding, documents, tokens, split",
        description="Prepare the text if necessary and list how every file was used.",
    )
    info.add_argument("--all", action="store_true", help=f"list all files, not only {MOST_ROWS}")
    info.add_argument("--json", action="store_true", help="everything about every file as one JSON object")
    actions.add_parser("prepare", help="turn the text into tokens now, so that training starts sooner")
    sample = actions.add_parser(
        "sample",
        help="show some text as the model sees it, token by token",
        description="Show some text as the model sees it, token by token.",
    )
    sample.add_argument(
        "file", nargs="?", metavar="FILE", help="a file or part of its name (default: a random one)"
    )
    sample.add_argument(
        "--at", type=whole_number, metavar="TOKEN", help="first token to show (default: random)"
    )
    sample.add_argument(
        "--tokens", type=whole_number, default=120, metavar="N", help="how many (default 120)"
    )
    sample.add_argument(
        "--write", action="store_true", help="write the built-in sample text into an empty dataset folder"
    )
    clean = actions.add_parser(
        "clean",
        help="delete what was prepared (never your text)",
        description="Delete the prepared tokens and vocabularies of a dataset, never the text itself.",
    )
    clean.add_argument(
        "--forget-split",
        action="store_true",
        help="also forget which text is used for validation; later runs may train on it",
    )
    for action in actions.choices.values():
        add_configuration_options(action)


def run(arguments: argparse.Namespace) -> int:
    """Carry out one action. Returns the exit code."""
    config = _configuration(arguments)
    if arguments.action == "clean":
        return _clean(config, arguments.forget_split)
    if arguments.action == "sample" and arguments.write:
        from core.data.sample_corpus import write_sample

        print(write_sample(config.data.dataset_dir))
        return 0
    corpus = prepared(config)
    if arguments.action == "prepare":
        _print_summary(corpus)
    elif arguments.action == "sample":
        _sample(corpus, arguments)
    elif arguments.json:
        _info_json(corpus)
    else:
        _info(corpus, arguments.all)
    return 0


def _configuration(arguments: argparse.Namespace) -> RunConfig:
    """The configuration as training would use it; but looking at text writes no configuration file."""
    from core.config.files import DEFAULT_PRESET, WORKING_FILE
    from mamba_tui.cli.run_options import configuration

    if not arguments.config and not arguments.preset and not WORKING_FILE.exists():
        arguments.preset = DEFAULT_PRESET
    return configuration(arguments)[0]


def prepared(config: RunConfig) -> Corpus:
    """Prepare a configuration's text, showing progress on stderr."""
    from core.data.corpus import prepare

    with _progress() as tell:
        return prepare(config.data, config.training.seed, progress=tell)


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress: as a bar on a terminal, elsewhere as a line every few seconds."""
    from mamba_tui.data_wording import progress_line
    from mamba_tui.widgets.safe_text import clip, visible

    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last > 5:
                last = time.monotonic()
                print(visible(progress_line(progress)), file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def bar(progress: Progress) -> None:
            words = clip(progress_line(progress), max(10, console.width - 22))
            bars.update(task, completed=progress.fraction, description=words)

        yield bar


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())


def _print_summary(corpus: Corpus) -> None:
    from mamba_tui.widgets.numbers import bytes_size
    from mamba_tui.widgets.safe_text import visible

    console = _console()
    for line in corpus.summary().splitlines():
        console.print(visible(line))
    what = (
        f"{corpus.encoded_files:,} files encoded"
        if corpus.encoded_files
        else "everything was prepared already"
    )
    size = sum(path.stat().st_size for path in corpus.cache.rglob("*") if path.is_file())
    console.print(f"{what}; {bytes_size(size)} in {visible(corpus.cache)}")


def _info(corpus: Corpus, every: bool) -> None:
    """A table for people on a terminal; elsewhere tab-separated lines with full names."""
    from rich.table import Table
    from rich.text import Text

    from core.data.corpus.figures import CorpusFigures
    from mamba_tui import data_wording as data_words
    from mamba_tui.widgets.safe_text import visible

    if not sys.stdout.isatty():
        _info_plain(corpus)
        return
    console = _console()
    rows = corpus.report if every else corpus.report[:MOST_ROWS]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("encoding", no_wrap=True)
    for title in ("docs", "tokens", "B/token"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("split", no_wrap=True)
    for file in rows:
        read = file.split != "skipped"
        table.add_row(
            Text(visible(file.name)),
            data_words.encoding_name(file),
            f"{file.documents:,}" if read else "",
            f"{file.tokens:,}" if read else "",
            f"{file.bytes_per_token:.2f}" if read else "",
            Text(
                data_words.split_name(file), style={"train": "", "skipped": "yellow"}.get(file.split, "cyan")
            ),
        )
    table.expand = True
    console.print(table)
    if len(rows) < len(corpus.report):
        console.print(f"... and {len(corpus.report) - len(rows):,} more; --all lists them", style="dim")
    console.print()
    for title, value in data_words.totals(CorpusFigures.of(corpus)):
        console.print(Text.assemble((f"{title:14}", "bold"), visible(value)))
    _print_notes(console, corpus, every)


def _print_notes(console: Console, corpus: Corpus, every: bool) -> None:
    """Notes; if many files share one, it appears once."""
    from rich.text import Text

    from mamba_tui import data_wording as data_words
    from mamba_tui.widgets.safe_text import visible

    notes: dict[str, list[FileReport]] = {}
    for file in corpus.report:
        for note in data_words.notes(file):
            notes.setdefault(_general(note), []).append(file)
    if notes or corpus.notices:
        console.print()
    for notice in corpus.notices:
        console.print(Text(visible(notice), style="yellow"))
    for index, (note, files) in enumerate(notes.items()):
        if index == MOST_NOTES and not every:
            console.print(f"... and {len(notes) - index:,} more notes; --all lists them", style="dim")
            break
        names = ", ".join(visible(file.name) for file in files[:3])
        more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
        console.print(Text.assemble((f"{names}{more}: ", "bold"), visible(note)))


def _general(note: str) -> str:
    """A note without the figures in brackets, which differ from file to file."""
    return note.split(" (")[0] if note.startswith("Project Gutenberg") else note


def _info_json(corpus: Corpus) -> None:
    """Everything known about every file, exactly, for another program."""
    import dataclasses
    import json

    from core.data.corpus.figures import CorpusFigures
    from mamba_tui import data_wording as data_words

    files = [
        {**dataclasses.asdict(file), "bytes_per_token": file.bytes_per_token, "notes": data_words.notes(file)}
        for file in corpus.report
    ]
    totals = dataclasses.asdict(CorpusFigures.of(corpus))
    report = {"files": files, "totals": totals, "notices": corpus.notices}
    print(json.dumps(report, indent=2))


def _info_plain(corpus: Corpus) -> None:
    from core.data.corpus.figures import CorpusFigures
    from mamba_tui import data_wording as data_words
    from mamba_tui.widgets.safe_text import visible

    titles = (
        "file",
        "split",
        "encoding",
        "bytes",
        "documents",
        "tokens",
        "validation_tokens",
        "longest_line",
    )
    print("\t".join((*titles, "notes")))
    for file in corpus.report:
        values = [getattr(file, title) for title in titles[3:]]
        notes = "; ".join(data_words.notes(file))
        print("\t".join(visible(value) for value in (file.name, file.split, file.encoding, *values, notes)))
    for title, value in data_words.totals(CorpusFigures.of(corpus)):
        print(f"# {title}: {visible(value)}")
    for notice in corpus.notices:
        print(f"# {visible(notice)}")


def _sample(corpus: Corpus, arguments: argparse.Namespace) -> None:
    """Tokens of one file with visible boundaries: by shades on a terminal, by bars elsewhere."""
    from rich.text import Text

    from core.data.corpus.preview import token_texts
    from mamba_tui.widgets.safe_text import visible

    if arguments.tokens < 1:
        raise UserError(f"--tokens is {arguments.tokens}; accepted: a number of at least 1")
    file = _choose(corpus, arguments.file)
    last = max(0, file.tokens - arguments.tokens)
    start = random.randint(0, last) if arguments.at is None else min(max(arguments.at, 0), file.tokens - 1)
    tokens = token_texts(corpus.tokenizer, corpus.file_tokens(file, start, arguments.tokens).tolist())
    where = f"{file.name}, tokens {start:,} to {start + len(tokens):,} of {file.tokens:,}"
    if not sys.stdout.isatty():
        print(f"# {visible(where)}")
        print("│".join(visible(token.text.replace("\n", "⏎")) for token in tokens))
        return
    console = _console()
    console.print(Text(visible(where), style="bold"))
    text = Text()
    for index, token in enumerate(tokens):
        shown = visible(token.text.replace("\n", "⏎\n"), lines=True)
        style = "bold reverse magenta" if token.opens else ("on grey23", "on grey35")[index % 2]
        text.append(shown, style=style)
    console.print(text)


def _choose(corpus: Corpus, wanted: str | None) -> FileReport:
    """The file of that name, or the first whose name contains it; a random one if none is wanted."""
    files = corpus.read
    if wanted is None:
        return random.choices(files, [file.tokens for file in files])[0]
    exact = [file for file in files if file.name == wanted]
    near = exact or [file for file in files if wanted.lower() in file.name.lower()]
    if not near:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f'no file that was read is called "{wanted}"; files: {names} ...')
    return near[0]


def _clean(config: RunConfig, forget_split: bool) -> int:
    from core.data.corpus.cleaning import clean
    from mamba_tui.widgets.numbers import bytes_size
    from mamba_tui.widgets.safe_text import visible

    said = False

    def waiting() -> None:
        nonlocal said
        if not said:
            print("waiting for the process that is preparing this text ...", file=sys.stderr)
        said = True

    folder, freed = clean(config.data.dataset_dir, forget_split=forget_split, waiting=waiting)
    kept = "" if forget_split else "; the split stays on record (--forget-split deletes it)"
    print(f"{bytes_size(freed)} deleted from {visible(folder)}{kept}")
    return 0
