"""Files and folders become documents, read exactly as training reads them."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.config.schema import DataConfig
from core.data.corpus import read_split
from core.data.corpus.encodings import check_declared
from core.data.corpus.listing import SourceFile, list_texts
from core.data.corpus.reading import Piece, ReadingOptions, clean_text, pieces
from core.data.corpus.survey import Facts, survey
from core.errors import UserError


@dataclass(frozen=True)
class EvaluationText:
    """A file to evaluate on. `side` is its side in the run's split; "" if the split doesn't know it."""

    file: SourceFile
    facts: Facts
    side: str

    def pieces(self, options: ReadingOptions) -> Iterator[Piece]:
        """Its text. Raises UserError if it can't be read to the end."""
        try:
            yield from pieces(clean_text(self.file, self.facts.encoding, options))
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise UserError(f"{self.file.name} could not be read completely: {error}") from error


@dataclass
class Texts:
    """The texts to read, and a sentence for every file that can't be read."""

    options: ReadingOptions
    texts: list[EvaluationText] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of clean text in UTF-8."""
        return sum(text.facts.bytes for text in self.texts)


def find_texts(paths: list[str], config: DataConfig, run_folder: Path, tick: Callable[[str], None]) -> Texts:
    """The texts under files and folders, with the reading options of a configuration.

    `run_folder` contains the run's split, if there is one. `tick` is told the name of the file being read and
    may raise to end the work. Raises UserError for a path without any text.
    """
    options = ReadingOptions(
        check_declared(config.encoding),
        config.strip_gutenberg,
        config.unwrap_lines,
        config.document_marks == "cut",
    )
    sides = dict((read_split(run_folder / "split.json") or {}).values())
    result = Texts(options)
    seen: set[str] = set()
    for path in paths:
        listing = list_texts(path, config.outside_links)
        folder = os.path.isdir(path)
        problems = dict(listing.skipped)
        usable, files = 0, listing.sources
        for file in files:
            name = os.path.join(path, file.name) if folder else path
            real = os.path.realpath(file.path)
            if real in seen:
                usable += 1
                continue
            facts = survey(file, options, _teller(tick, name), threading.Event())
            if facts.problem:
                problems[file.name] = facts.problem
                continue
            usable += 1
            seen.add(real)
            side = sides.get(facts.letters) or sides.get(facts.raw, "")
            result.texts.append(EvaluationText(dataclasses.replace(file, name=name), facts, side))
        if not usable:
            raise UserError(_nothing(path, folder, problems))
        result.skipped |= {os.path.join(path, name): reason for name, reason in problems.items()}
    return result


def _teller(tick: Callable[[str], None], name: str) -> Callable[[int], None]:
    return lambda size: tick(name)


def _nothing(path: str, folder: bool, problems: dict[str, str]) -> str:
    if not problems:
        return f"--text is {path}, a folder without .txt and .txt.gz files; accepted: text files and folders"
    name, reason = next(iter(problems.items()))
    if not folder:
        return f"--text is {path}, which {reason}; accepted: text files and folders"
    return f"--text is {path}, a folder without usable text: {name} {reason}"
