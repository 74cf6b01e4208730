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

    can_be_captured: bool
    """Whether every `read` is the same launches on the same memory, so that a CUDA graph can repeat it."""

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
        device = model.embedding.weight.device
        self._index = torch.zeros(rows, dtype=torch.int64, device=device)
        self.can_be_captured = device.type == "cuda"
        self.state, self.read = self._decoder.state, self._decoder.launch

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
    given = torch.from_numpy(_as_streams(tokens, streams)).to(start.logits.device)
    rows.load(start.state)
    encoding = _Encoding(rows, start.logits.expand(streams, -1), given)
    _repeat(encoding.step, len(given) - 1, rows.can_be_captured, lambda: told(streams))
    encoding.code()
    told(streams)
    last = len(tokens) - (len(given) - 1) * streams
    return Coded(len(tokens), *encode(encoding.starts.cpu().numpy(), encoding.counts.cpu().numpy(), last))


class _Encoding:
    """Looks up what each given token (T, S) has of the frequencies: where it starts and how much, (T, S)."""

    def __init__(self, rows: Rows, logits: Tensor, given: Tensor) -> None:
        self.rows, self.logits, self.given = rows, logits, given
        self.starts, self.counts = torch.zeros_like(given), torch.zeros_like(given)
        self.at = torch.zeros(1, dtype=torch.int64, device=given.device)

    def code(self) -> Tensor:
        """Look up one token of every stream; they are returned, (S,)."""
        table = frequencies(self.logits)
        symbols = self.given.index_select(0, self.at)[0]
        own = table.gather(1, symbols.unsqueeze(1))
        start = table.cumsum(1).gather(1, symbols.unsqueeze(1)) - own
        self.counts.index_copy_(0, self.at, own.t())
        self.starts.index_copy_(0, self.at, start.t())
        self.at += 1
        return symbols

    def step(self) -> None:
        """Look up a token of every stream, and read it."""
        self.logits = self.rows.read(self.code())


@torch.inference_mode()
def decode_streams(rows: Rows, start: Start, coded: Coded, told: Told) -> Tokens:
    """The tokens (N,) that `encode_streams` was given."""
    streams = len(coded.states)
    steps = -(-coded.tokens // streams)
    rows.load(start.state)
    decoding = _Decoding(rows, start.logits.expand(streams, -1), coded, steps)
    _repeat(decoding.step, steps - 1, rows.can_be_captured, lambda: told(streams))
    decoding.code(coded.tokens - (steps - 1) * streams)
    told(streams)
    return _from_streams(decoding.out.cpu().numpy(), coded.tokens)


class _Decoding:
    """Turns coded words back into tokens, which come to stand in `out` (T, S)."""

    def __init__(self, rows: Rows, logits: Tensor, coded: Coded, steps: int) -> None:
        self.rows, self.logits, self.streams = rows, logits, len(logits)
        self.coder = StreamDecoder(coded.states, coded.words, logits.device)
        self.out = torch.zeros(steps, self.streams, dtype=torch.int64, device=logits.device)
        self.at = torch.zeros(1, dtype=torch.int64, device=logits.device)

    def code(self, active: int) -> Tensor:
        """Decode a token of each of the first `active` streams; they are returned, (S,), 0 for the others."""
        symbols = torch.zeros_like(self.out[0])
        symbols[:active] = self.coder.next(frequencies(self.logits), active)
        self.out.index_copy_(0, self.at, symbols.unsqueeze(0))
        self.at += 1
        return symbols

    def step(self) -> None:
        """Decode a token of every stream, and read it."""
        self.logits = self.rows.read(self.code(self.streams))


def _repeat(step: Callable[[], None], count: int, capture: bool, told: Callable[[], object]) -> None:
    """Do a step `count` times; with `capture` it becomes a CUDA graph, which is replayed.

    The first time it is done as it is, which compiles the kernels. Coding and decoding have the same number
    of steps, so both do the same ones by the graph. A step that can't be captured is repeated as it is:
    capturing computes nothing.
    """
    graph = None
    for number in range(count):
        if number == 1 and capture:
            graph = _captured(step)
        if graph is None:
            step()
        else:
            graph.replay()
        told()


def _captured(step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """The step as a CUDA graph, None if it can't be captured."""
    torch.cuda.synchronize()
    stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        torch.cuda.set_stream(stream)  # torch stays on the one that it captured
        torch.cuda.synchronize()
        return None
    return graph


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
