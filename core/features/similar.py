"""The passages of texts that are most similar to a passage, by the features of a model's layer.

The texts' features are stored (`shelf_index.py`); the passage is read as a document. Features of one model
have most of their length in common, so each number is first standardized by its mean and standard deviation
over the texts; similarity is the cosine of the result, from -1 to 1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.checkpoint import model_fingerprint
from core.data.corpus.reading import ReadingOptions
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.evaluation.service import documents
from core.evaluation.text_loss import chunk_tokens, in_chunks
from core.evaluation.texts import EvaluationText, Texts
from core.features.embed import WAIST, DocumentEncoder, Rows
from core.features.shelf_index import ShelfIndex, TextIndex, check_unchanged, index_name
from core.model import GPT

PASSAGE = "100 words"
"""The kind of passage unless another one is requested."""
LONGEST_QUERY = 1 << 20
"""The most bytes of the passage to search for."""
SHOWN = 2_000
"""Characters of a passage that are returned."""
HELD_BYTES = 1 << 29
"""Bytes of features that stay in memory between two searches."""
Tell = Callable[[int, int, str], object]
"""Called after every chunk with the bytes indexed, the total and the file; it may raise."""


@dataclass(frozen=True)
class Hit:
    """A passage of the texts."""

    nearness: float
    """The cosine similarity to the passage searched for, -1 to 1."""
    file: str
    document: int
    """The document's number in the file, from 1."""
    start: int
    """Where it begins and ends, in bytes of the document's clean text in UTF-8."""
    end: int
    character: int = 0
    """Where it begins, in characters of the document's clean text."""
    text: str = ""
    """Its first characters."""


@dataclass(frozen=True)
class Answer:
    """The most similar passages, best first, and how many there were."""

    hits: list[Hit]
    passages: int
    indexed: int
    """Files that the model had to read; the others were stored already."""


class PassageFinder:
    """Searches passages with one layer of one model."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        layer: str | int = WAIST,
        per: str = PASSAGE,
        kept: ShelfIndex | None = None,
    ) -> None:
        """Raises UserError for a layer or a kind of passage that doesn't exist."""
        if per.strip() == "token":
            raise UserError(
                'per is "token"; accepted: line, paragraph, document, or a number such as "100 words"'
            )
        self._model, self._tokenizer = model, tokenizer
        self._encoder = DocumentEncoder(model, tokenizer, layer, per)
        self._whole = DocumentEncoder(model, tokenizer, layer, "document")
        self._kept, self._held = kept or ShelfIndex(), dict[str, TextIndex]()
        self._depends_on = [model_fingerprint(model).hex(), tokenizer.hash, self._encoder.layer, per.strip()]

    def nearest(
        self, passage: str, texts: Texts, count: int, tell: Tell = lambda done, size, name: None
    ) -> Answer:
        """The `count` passages most similar to `passage`. Raises UserError, as `tell` may."""
        wanted = self._features_of(passage)
        files = texts.texts
        moments, indexed = _Moments(self._encoder.width), 0
        done = 0
        for text in files:

            def told(more: int, before: int = done, name: str = text.file.name) -> None:
                tell(before + more, texts.bytes, name)

            index, new = self._index(text, texts.options, told)
            indexed += new
            done += text.facts.bytes
            moments.add(index.features)
        best: list[tuple[float, int, int]] = []
        direction = _unit(moments.standardized(wanted[None]))[0]
        passages = 0
        for number, text in enumerate(files):
            index, _ = self._index(text, texts.options, lambda more: None)
            passages += len(index.features)
            nearness = _unit(moments.standardized(index.features)) @ direction
            rows = np.argsort(-nearness, kind="stable")[:count]
            # If equal, the earlier one comes first.
            ranked = ((float(nearness[row]), -number, -int(row)) for row in rows)
            best = heapq.nlargest(count, [*best, *ranked])
        return Answer(self._told(best, texts), passages, indexed)

    def _features_of(self, passage: str) -> npt.NDArray[np.float64]:
        """The passage's features (C,)."""
        if not passage.strip():
            raise UserError("the passage to search for is empty; accepted: some words of text")
        if (size := len(passage.encode("utf-8", "replace"))) > LONGEST_QUERY:
            raise UserError(
                f"the passage to search for has {size:,} bytes; accepted: at most {LONGEST_QUERY:,}"
            )
        chunks = in_chunks([self._tokenizer.encode(passage)], chunk_tokens(self._model))
        rows = list(self._whole.rows("the passage", chunks))
        return rows[0].features[0].astype(np.float64)

    def _index(
        self, text: EvaluationText, options: ReadingOptions, tell: Callable[[int], object]
    ) -> tuple[TextIndex, bool]:
        """The passages of a file, and whether they had to be computed."""
        name = index_name(text.facts.raw, text.facts.encoding, options.key, *self._depends_on)
        if name in self._held:
            return self._held[name], False
        kept = self._kept.load(name, self._encoder.width)
        if kept is not None:
            return self._hold(name, kept), False
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            tell(done)

        index = _joined(self._encoder.text_rows(text, options, told), self._encoder.width)
        check_unchanged(text.file.path, text.file.signature)
        self._kept.save(name, index)
        return self._hold(name, index), True

    def _hold(self, name: str, index: TextIndex) -> TextIndex:
        """Keep an index in memory; if there is no room, the oldest are dropped."""
        self._held[name] = index
        while len(self._held) > 1 and sum(one.features.nbytes for one in self._held.values()) > HELD_BYTES:
            del self._held[next(iter(self._held))]
        return index

    def _told(self, best: list[tuple[float, int, int]], texts: Texts) -> list[Hit]:
        """The hits with their text, in the order of `best`: (nearness, -file, -row)."""
        hits: dict[int, Hit] = {}
        for number in sorted({-file for _, file, _ in best}):
            text = texts.texts[number]
            index, _ = self._index(text, texts.options, lambda more: None)
            mine = {}
            for order, (nearness, file, row) in enumerate(best):
                if -file == number:
                    document, start, end = (
                        int(part[-row]) for part in (index.document, index.start, index.end)
                    )
                    mine[order] = Hit(nearness, text.file.name, document, start, end)
            hits |= _with_text(mine, text, texts.options)
        return [hits[order] for order in sorted(hits)]


class _Moments:
    """Mean and standard deviation of each number over all rows."""

    def __init__(self, width: int) -> None:
        self._count, self._sum, self._squares = 0, np.zeros(width), np.zeros(width)

    def add(self, rows: npt.NDArray[np.floating[Any]]) -> None:
        wide = rows.astype(np.float64)
        self._count += len(wide)
        self._sum += wide.sum(0)
        self._squares += np.square(wide).sum(0)

    def standardized(self, rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Standardized (N, C) to (N, C); a number that is the same everywhere carries no information and
        becomes 0.
        """
        count = max(1, self._count)
        mean = self._sum / count
        variance = self._squares / count - np.square(mean)
        varies = variance > 1e-12 * np.maximum(1e-12, np.square(mean))
        scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
        return (rows.astype(np.float64) - mean) * scale


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _joined(rows: Iterator[tuple[int, Rows]], width: int) -> TextIndex:
    """The rows of a file as one index."""
    features: list[npt.NDArray[Any]] = [np.empty((0, width))]
    places: list[list[npt.NDArray[np.int64]]] = [[np.empty(0, np.int64)] * 3]
    for number, part in rows:
        features.append(part.features)
        places.append([np.full(len(part.start), number), part.start, part.end])
    return TextIndex(np.concatenate(features).astype(np.float32), *map(np.concatenate, zip(*places)))


def _with_text(hits: dict[int, Hit], text: EvaluationText, options: ReadingOptions) -> dict[int, Hit]:
    """The hits of one file with characters and text, read from the file again."""
    told = {}
    last = max(hit.document for hit in hits.values())
    for number, document in enumerate(documents(text.pieces(options)), 1):
        position, characters = 0, 0
        here = {order: hit for order, hit in hits.items() if hit.document == number}
        before, parts = dict.fromkeys(here, 0), {order: bytearray() for order in here}
        for piece in document:
            raw = piece.text.encode("utf-8", "surrogatepass")
            for order, hit in here.items():
                start, end = hit.start - position, hit.end - position
                if 0 <= start < len(raw):
                    before[order] = characters + len(raw[:start].decode("utf-8", "replace"))
                if start < len(raw) and end > 0 and len(parts[order]) < 4 * SHOWN:
                    parts[order] += raw[max(0, start) : end]
            position, characters = position + len(raw), characters + len(piece.text)
        for order, hit in here.items():
            shown = parts[order].decode("utf-8", "replace")[:SHOWN]
            told[order] = Hit(hit.nearness, hit.file, number, hit.start, hit.end, before[order], shown)
        if number == last:
            break
    return told
