"""Passages of books, and what the layers of a model make of them, each read by itself from an empty state."""

from __future__ import annotations

import gzip
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from core.config.schema import build
from core.data.tokenizer.tokenizer import Tokenizer
from core.evaluation.texts import find_texts
from core.model import GPT

HEAD_BYTES = 20_000
TOKENS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Passages:
    """Passages of as many words each, and the number of the book and of the author of each, (N,)."""

    texts: list[str]
    book: npt.NDArray[np.int64]
    author: npt.NDArray[np.int64]
    """-1 where the shelf has one book by the author: no other book can tell."""
    books: list[str]


def passages(data: Path, words: int, count: int, seed: int) -> Passages:
    """Up to `count` passages of every book under a folder, spread at random, none overlapping another."""
    generator = np.random.default_rng(seed)
    texts, numbers, names, authors = [], [], [], []
    shelf = find_texts([str(data)], build({}).data, data, lambda name: None)
    for number, book in enumerate(shelf.texts):
        content = "".join(piece.text for piece in book.pieces(shelf.options)).split()
        room = len(content) // words
        for at in sorted(generator.permutation(room)[:count]):
            texts.append(" ".join(content[at * words : (at + 1) * words]))
            numbers.append(number)
        names.append(book.file.name)
        authors.append(author_of(Path(book.file.path)))
    several = [author for author in sorted(set(authors)) if author and authors.count(author) > 1]
    of_book = np.array([several.index(one) if one in several else -1 for one in authors], np.int64)
    book_numbers = np.array(numbers, np.int64)
    return Passages(texts, book_numbers, of_book[book_numbers], names)


def author_of(path: Path) -> str:
    """Initial and beginning of the surname of the author that a book's Gutenberg header names; "" if none."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", "replace")
    match = re.search(r"^Author: *([^,\r\n(]+)", head, re.MULTILINE)
    if not match:
        return ""
    plain = unicodedata.normalize("NFKD", match[1]).encode("ascii", "ignore").decode().lower().split()
    return f"{plain[0][0]} {plain[-1][:5]}" if plain else ""  # Dostoevsky is spelled in several ways


@torch.inference_mode()
def features(model: GPT, tokenizer: Tokenizer, layer: int, texts: list[str]) -> npt.NDArray[np.float32]:
    """The mean of a layer's stream over each text's tokens, (N, C)."""
    device = model.embedding.weight.device
    ids = [tokenizer.encode(text).astype(np.int64) for text in texts]
    out = np.empty((len(texts), model.config.n_embd[layer]), np.float32)
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    while order:
        rows = max(1, TOKENS_AT_ONCE // (len(ids[order[-1]]) + 1))
        batch, order = order[-rows:], order[:-rows]
        longest = len(ids[batch[-1]])
        tokens = torch.full((len(batch), longest + 1), tokenizer.eot)
        for row, text in enumerate(batch):
            tokens[row, 1 : len(ids[text]) + 1] = torch.from_numpy(ids[text])
        stream = model.encode_layer(layer, tokens.to(device))[0][:, 1:]
        lengths = torch.tensor([len(ids[text]) for text in batch], device=device)
        inside = torch.arange(longest, device=device) < lengths[:, None]
        mean = (stream.float() * inside[..., None]).sum(1) / lengths[:, None].clamp(min=1)
        out[batch] = mean.cpu().numpy()
    return out
