"""Texts to features: a layer's features of every token, averaged over passages.

Texts are read as training reads them, with the state carried through each document, so cutting them into
chunks changes nothing, and memory doesn't grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from core.checkpoint import config_of, load_model
from core.data.corpus.reading import ReadingOptions
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.evaluation.service import documents
from core.evaluation.text_loss import chunk_tokens, in_chunks
from core.evaluation.texts import EvaluationText, Texts, find_texts
from core.features.passages import Passages
from core.model import GPT, ModelState
from core.system.hardware import resolve_device

Ids = npt.NDArray[np.integer[Any]]
WAIST = "waist"


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one document."""

    name: str
    """The file's name, with the document's number if the file has several."""
    features: npt.NDArray[np.floating[Any]]
    """(N, C), the mean over the tokens of each passage."""
    start: npt.NDArray[np.int64]
    """Where each passage begins, in bytes of the document's clean text, (N,)."""
    end: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    """Tokens of each passage, (N,)."""


def chosen_layer(model: GPT, layer: str | int) -> int:
    """The number of a layer, counted from 0. Raises UserError for one that the model doesn't have."""
    if layer == WAIST:
        return model.waist
    text = str(layer)
    if text.isascii() and text.isdecimal() and int(text) < model.config.n_layer:
        return int(text)
    raise UserError(
        f"--layer is {layer}; accepted: {WAIST}, or a layer's number from 0 to {model.config.n_layer - 1}"
    )


class DocumentEncoder:
    """Reads the tokens of one document after the other and returns the features of its passages."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, layer: str | int = WAIST, per: str = "paragraph"
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.layer = chosen_layer(model, layer)
        self.width = model.config.n_embd[self.layer]
        self._passages = Passages(per)
        self._device = model.embedding.weight.device

    def rows(self, name: str, chunks: Iterator[Ids]) -> Iterator[Rows]:
        """The rows of a document from its tokens, which may come in any chunks."""
        state, position = self._opened(), 0
        self._passages.start_document()
        held = Rows(name, np.zeros((1, self.width)), *(np.zeros(1, np.int64) for _ in range(3)))
        for chunk in chunks:
            features, state = self._read(chunk, state)
            lengths = self._tokenizer.token_lengths[chunk]
            text = np.frombuffer(self._tokenizer.decode_bytes(chunk.tolist()), np.uint8)
            last_byte = np.cumsum(lengths) - 1
            if self._passages.per == "token":
                starts = position + last_byte + 1 - lengths
                yield Rows(name, features.cpu().numpy(), starts, starts + lengths, np.ones_like(starts))
            else:
                held, whole = _grouped(held, features, self._passages.begins(text), last_byte, position)
                if len(whole.start):
                    yield whole
            position += len(text)
        if held.tokens[0]:
            yield _mean(held, np.array([position]))

    def text_rows(
        self, text: EvaluationText, options: ReadingOptions, tell: Callable[[int], object]
    ) -> Iterator[tuple[int, Rows]]:
        """The rows of all documents of a file, each with its document's number, from 1.

        `tell` is called with the bytes of each chunk; it may raise.
        """
        for number, document in enumerate(documents(text.pieces(options)), 1):
            name = text.file.name + (f", document {number}" if text.facts.documents > 1 else "")
            ids = (self._tokenizer.encode(piece.text) for piece in document)
            chunks = in_chunks(ids, chunk_tokens(self._model))
            for rows in self.rows(name, self._counted(chunks, tell)):
                yield number, rows

    def _counted(self, chunks: Iterator[Ids], tell: Callable[[int], object]) -> Iterator[Ids]:
        for chunk in chunks:
            yield chunk
            tell(int(self._tokenizer.token_lengths[chunk].sum()))

    @torch.inference_mode()
    def _opened(self) -> ModelState:
        opening = torch.tensor([[self._tokenizer.eot]], device=self._device)
        return self._model.encode_layer(self.layer, opening)[1]

    @torch.inference_mode()
    def _read(self, chunk: Ids, state: ModelState) -> tuple[Tensor, ModelState]:
        """The features (N, C) of tokens (N,), in float64 if the model is, otherwise float32."""
        tokens = torch.from_numpy(chunk.astype(np.int64)).to(self._device)[None]
        features, state = self._model.encode_layer(self.layer, tokens, state)
        wide = torch.promote_types(features.dtype, torch.float32)
        return features[0].to(wide), state


def _grouped(
    held: Rows,
    features: Tensor,
    begins: npt.NDArray[np.int64],
    last_byte: npt.NDArray[np.int64],
    position: int,
) -> tuple[Rows, Rows]:
    """Add tokens to passages: returns the sum of the unfinished passage and the means of the finished ones.

    A token belongs to the passage that contains its last byte, so a space before a word belongs to the word.
    """
    first = np.searchsorted(last_byte, begins)  # the first token of each new passage
    bounds = np.concatenate(([0], first, [len(features)])).astype(np.int64)
    counts = np.diff(bounds)
    sums = _sums(features, bounds)
    sums[0] += held.features[0]
    counts = counts.copy()
    counts[0] += held.tokens[0]
    starts = np.concatenate((held.start, position + begins))
    rest = Rows(held.name, sums[-1:], starts[-1:], starts[-1:], counts[-1:])
    whole = Rows(held.name, sums[:-1], starts[:-1], starts[1:], counts[:-1])
    return rest, _mean(whole, whole.end)


@torch.inference_mode()
def _sums(features: Tensor, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The sums (N, C) of the rows between N + 1 bounds, made where the features are: few are brought here."""
    if features.device.type == "cuda":
        total = F.pad(features.double().cumsum(0), (0, 0, 1, 0))[torch.from_numpy(bounds).to(features.device)]
        return total.diff(dim=0).cpu().numpy()
    rows = features.cpu().numpy()
    sums = np.zeros((len(bounds) - 1, rows.shape[1]))
    if len(filled := np.flatnonzero(np.diff(bounds))):
        sums[filled] = np.add.reduceat(rows.astype(np.float64), bounds[:-1][filled], 0)
    return sums


def _mean(rows: Rows, end: npt.NDArray[np.int64]) -> Rows:
    """Means from sums; passages without a token of their own are left out."""
    kept = rows.tokens > 0
    features = rows.features[kept] / rows.tokens[kept, None]
    return Rows(rows.name, features, rows.start[kept], end[kept], rows.tokens[kept])


def embed(
    texts: list[str],
    checkpoint: Path,
    *,
    device: str = "auto",
    layer: str | int = WAIST,
    per: str = "paragraph",
    tell: Callable[[int, int, str], object] = lambda done, size, name: None,
) -> tuple[int, Iterator[Rows]]:
    """The features' width, and the rows of files and folders, read on demand.

    After every chunk, `tell` is called with the bytes done, the total and the name; it may raise to end the
    work. Raises UserError for bad arguments and for texts that can't be read.
    """
    model, tokenizer, payload = load_model(checkpoint, resolve_device(device))
    encoder = DocumentEncoder(model, tokenizer, layer, per)
    shelf = find_texts(texts, config_of(payload, checkpoint).data, checkpoint.parent, lambda name: None)
    return encoder.width, _rows(encoder, shelf, tell)


def _rows(encoder: DocumentEncoder, texts: Texts, tell: Callable[[int, int, str], object]) -> Iterator[Rows]:
    done = 0
    for text in texts.texts:

        def told(count: int, name: str = text.file.name) -> None:
            nonlocal done
            done += count
            tell(done, texts.bytes, name)

        for _, rows in encoder.text_rows(text, texts.options, told):
            yield rows
