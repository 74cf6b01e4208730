"""Tokens to coded bits and back, with the probabilities that a model gives each next token.

The tokens are cut into streams, which the model reads in parallel: stream i has the i-th part. Coding and
decoding do the same arithmetic in the same order: both read one token of every stream at a time, in the same
number of streams, from the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.compression.coder import StreamDecoder, encode, frequencies
from core.compression.row_decoder import RowDecoder
from core.model import GPT
from core.model_state import ModelState
from core.ops.dispatch import DECODING, takes_triton

Tokens = npt.NDArray[np.int64]
Told = Callable[[int], object]
"""Called after every step with the number of tokens coded; may raise to end the work."""


class Rows(Protocol):
    """A model that reads a fixed number of texts in parallel."""

    def load(self, state: ModelState) -> None:
        """Let every text continue from the single one of `state`."""

    def state(self) -> ModelState:
        """The state after everything that was read."""

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token of each text, (S,). Returns the logits of the next ones, (S, V)."""


class _GraphRows:
    """`GraphDecoder`, which generation uses on CUDA, for texts that continue from one state."""

    def __init__(self, model: GPT, rows: int, eot: int) -> None:
        from core.generation.cuda.graph_decoder import GraphDecoder

        with torch.inference_mode(False):
            self._decoder = GraphDecoder(model, eot, rows)
        self._index = torch.zeros(rows, dtype=torch.int64, device=model.embedding.weight.device)
        self.state, self.read = self._decoder.state, self._decoder.read

    def load(self, state: ModelState) -> None:
        self._decoder.load(state.batch_rows(self._index))


def rows_of(model: GPT, rows: int, eot: int) -> Rows:
    """The fastest way to read `rows` texts in parallel on the model's device."""
    if takes_triton(model.embedding.weight, DECODING):
        from core.generation.cuda.graph_decoder import can_decode

        if can_decode(model):
            return _GraphRows(model, rows, eot)
    return RowDecoder(model, rows)


@dataclass(frozen=True)
class Start:
    """Where all streams of a segment start: a state of one text, and the logits (1, V) of its next token."""

    state: ModelState
    logits: Tensor


@dataclass(frozen=True)
class Coded:
    """Coded tokens: how many, the coder's states (streams,) and its words."""

    tokens: int
    states: npt.NDArray[np.uint64]
    words: npt.NDArray[np.uint32]


@torch.inference_mode()
def document_start(model: GPT, eot: int) -> Start:
    """The start of a document, which `eot` opens."""
    rows = rows_of(model, 1, eot)
    rows.load(model.initial_state(1))
    logits = rows.read(torch.tensor([eot], device=model.embedding.weight.device)).clone()
    return Start(rows.state(), logits)


@torch.inference_mode()
def encode_streams(rows: Rows, streams: int, start: Start, tokens: Tokens, told: Told) -> Coded:
    """Code tokens (N,), N at least `streams`, in `streams` streams of one segment."""
    device = start.logits.device
    given = torch.from_numpy(_as_streams(tokens, streams)).to(device)
    starts, counts = torch.zeros_like(given), torch.zeros_like(given)
    rows.load(start.state)
    logits = start.logits.expand(streams, -1)
    steps = len(given)
    for step in range(steps):
        table = frequencies(logits)
        symbol = given[step].unsqueeze(1)
        own = table.gather(1, symbol)
        counts[step] = own.squeeze(1)
        starts[step] = (table.cumsum(1).gather(1, symbol) - own).squeeze(1)
        if step + 1 < steps:
            logits = rows.read(given[step])
        told(streams)
    last = len(tokens) - (steps - 1) * streams
    return Coded(len(tokens), *encode(starts.cpu().numpy(), counts.cpu().numpy(), last))


@torch.inference_mode()
def decode_streams(rows: Rows, start: Start, coded: Coded, told: Told) -> Tokens:
    """The tokens (N,) that `encode_streams` was given."""
    streams, device = len(coded.states), start.logits.device
    coder = StreamDecoder(coded.states, coded.words, device)
    steps = -(-coded.tokens // streams)
    out = torch.zeros(steps, streams, dtype=torch.int64, device=device)
    rows.load(start.state)
    logits = start.logits.expand(streams, -1)
    for step in range(steps):
        active = streams if step + 1 < steps else coded.tokens - step * streams
        out[step, :active] = coder.next(frequencies(logits), active)
        if step + 1 < steps:
            logits = rows.read(out[step])
        told(streams)
    return _from_streams(out.cpu().numpy(), coded.tokens)


def _lengths(count: int, streams: int) -> list[int]:
    """How many tokens each stream has: the first streams have one more if they can't all have the same
    number.
    """
    return [count // streams + (stream < count % streams) for stream in range(streams)]


def _as_streams(tokens: Tokens, streams: int) -> Tokens:
    """(T, S), the i-th part in column i; zeros after the end of shorter ones."""
    lengths = _lengths(len(tokens), streams)
    out = np.zeros((lengths[0], streams), np.int64)
    for stream, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        out[: len(part), stream] = part
    return out


def _from_streams(table: Tokens, count: int) -> Tokens:
    """The tokens that `_as_streams` was given."""
    lengths = _lengths(count, table.shape[1])
    return np.concatenate([table[:length, stream] for stream, length in enumerate(lengths)])
