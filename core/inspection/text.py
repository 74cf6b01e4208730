"""The text to inspect: typed, from files, or the last one that the run validates on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.config.schema import RunConfig
from core.data.corpus import Progress, prepare, read_split
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.evaluation.service import documents
from core.evaluation.texts import find_texts
from core.features.passages import Passages

MOST_TOKENS = 4096
"""The most tokens that can be inspected: attention maps grow with their square."""
USUAL_TOKENS = 512

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class InspectedText:
    """Some tokens of a text.

    Attributes:
        name: where they come from.
        tokens: (T,) int64.
        starts: where documents start, (T,) bool; the first token always counts as one.
        paragraphs: the numbers of the tokens that begin a paragraph, except a document's first, (n,) int64.
    """

    name: str
    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.bool_]
    paragraphs: npt.NDArray[np.int64]


def text_of(name: str, ids: Ids, tokenizer: Tokenizer, most: int) -> InspectedText:
    """The first `most` of some tokens; `<|endoftext|>` opens a document, and is inserted in front if missing.

    Raises UserError if there is no text.
    """
    tokens = np.asarray(ids, np.int64)
    if not len(tokens):
        raise UserError(f"{name} contains no text; accepted: text of at least one character")
    if tokens[0] != tokenizer.eot:
        tokens = np.concatenate(([tokenizer.eot], tokens))
    tokens = tokens[:most]
    starts = tokens == tokenizer.eot
    return InspectedText(name, tokens, starts, _paragraphs(tokens, starts, tokenizer))


def _paragraphs(
    tokens: npt.NDArray[np.int64], starts: npt.NDArray[np.bool_], tokenizer: Tokenizer
) -> npt.NDArray[np.int64]:
    """The numbers of the tokens in which paragraphs begin: those that contain the end of the first letter."""
    passages, begins = Passages("paragraph"), []
    borders = [*np.flatnonzero(starts).tolist(), len(tokens)]
    for first, end in pairwise(borders):
        ids = tokens[first + 1 : end]
        passages.start_document()
        raw = np.frombuffer(tokenizer.decode_bytes(ids.tolist()), np.uint8)
        last_byte = np.cumsum(tokenizer.token_lengths[ids]) - 1
        inside = np.searchsorted(last_byte, passages.begins(raw))
        begins.append(first + 1 + inside[inside < len(ids)])
    return np.unique(np.concatenate(begins)).astype(np.int64)


def typed_text(text: str, tokenizer: Tokenizer, most: int) -> InspectedText:
    """A text that somebody typed or pasted. Raises UserError as `text_of`."""
    return text_of("the text", tokenizer.encode(text), tokenizer, most)


def text_of_files(
    paths: list[str], config: RunConfig, run_folder: Path, tokenizer: Tokenizer, most: int
) -> InspectedText:
    """The beginning of files, read as training reads them. Raises UserError for files without text."""
    texts = find_texts(paths, config.data, run_folder, lambda name: None)
    parts: list[Ids] = []
    count, names = 0, []
    for text in texts.texts:
        names.append(text.file.name)
        for document in documents(text.pieces(texts.options)):
            parts.append(np.array([tokenizer.eot]))
            count += 1
            for piece in document:
                if count < most:
                    parts.append(tokenizer.encode(piece.text))
                    count += len(parts[-1])
            if count >= most:
                return text_of(", ".join(names), np.concatenate(parts), tokenizer, most)
    return text_of(", ".join(names), np.concatenate([np.empty(0, np.int64), *parts]), tokenizer, most)


def validation_text(
    config: RunConfig,
    run_folder: Path,
    tokenizer: Tokenizer,
    most: int,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> InspectedText:
    """The beginning of the last validation text of a run that is long enough, otherwise the text's end.

    `tell` is called with progress if the text has to be prepared first; it may raise to end the work. Raises
    UserError if the run's text no longer exists.
    """
    try:
        corpus = prepare(
            config.data, config.training.seed, tokenizer=tokenizer,
            split=read_split(run_folder / "split.json"), progress=tell,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"the run's text cannot be read: {error}") from error
    stream = corpus.validation
    start = _last_start(stream.documents.tolist(), len(stream), most)
    ids = stream.read(start, min(most, len(stream) - start))
    return text_of("the last validation text", ids, tokenizer, most)


def _last_start(starts: Iterable[int], length: int, most: int) -> int:
    """The last position where a document starts and `most` tokens are left; without one, `most` before the
    end.
    """
    return max((start for start in starts if start + most <= length), default=max(0, length - most))
