"""A model that codes segments of a file: bytes to tokens to coded bits, and back."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from core.checkpoint import load_model
from core.compression.exact_tokens import to_bytes, to_tokens
from core.compression.format import Segment
from core.compression.streams import Rows, decode_streams, document_start, encode_streams, rows_of
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.self_check import check_all_kernels
from core.model import GPT

Progressed = Callable[[float], object]
"""Called with the bytes done since the last call; may raise to end the work."""


class Engine:
    """A model and its tokenizer on a device, ready to code."""

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device = model.embedding.weight.device
        self._start = document_start(model, tokenizer.eot)
        self._rows: dict[int, Rows] = {}

    @staticmethod
    def load(checkpoint: Path, device: str) -> Engine:
        """Load a checkpoint. Raises UserError as `load_model` does.

        From here on torch uses one thread in this process, so that sums on CPU are always added in the same
        order, and float32 means float32.
        """
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        model, tokenizer, _ = load_model(checkpoint, device)
        check_all_kernels(device, model.config.attention_type)
        return Engine(model, tokenizer)

    def encode(self, data: bytes, streams: int, progressed: Progressed) -> Segment:
        """The smaller of the coded form of `data` and the bytes themselves."""
        as_it_is = Segment(len(data), zlib.crc32(data), stored=data)
        if _is_noise(data):
            progressed(len(data))
            return as_it_is
        text = _without_carriage_returns(data)
        tokens = to_tokens(self.tokenizer, data if text is None else text)
        streams = min(streams, len(tokens))
        each = len(data) / len(tokens)
        coded = encode_streams(
            self._reading(streams), streams, self._start, tokens, lambda count: progressed(count * each)
        )
        segment = Segment(len(data), zlib.crc32(data), coded, line_ends=text is not None)
        return segment if segment.cost < as_it_is.cost else as_it_is

    def decode(self, segment: Segment, progressed: Progressed) -> bytes:
        """The bytes of a segment. Raises UserError if they aren't those that were compressed."""
        if segment.coded is None:
            data = segment.stored
            progressed(len(data))
        else:
            rows, each = self._reading(len(segment.coded.states)), segment.size / segment.coded.tokens
            tokens = decode_streams(rows, self._start, segment.coded, lambda count: progressed(count * each))
            data = to_bytes(self.tokenizer, tokens)
            if segment.line_ends:
                data = data.replace(b"\n", b"\r\n")
        if len(data) != segment.size or zlib.crc32(data) != segment.checksum:
            raise UserError(
                "the model produced another text than the compressed one: this machine's arithmetic "
                "differs; decompress with the device, processor and version of torch that compressed it"
            )
        return data

    def _reading(self, streams: int) -> Rows:
        if streams not in self._rows:
            if len(self._rows) > 1:
                self._rows.clear()
            self._rows[streams] = rows_of(self.model, streams, self.tokenizer.eot)
        return self._rows[streams]


def _without_carriage_returns(data: bytes) -> bytes | None:
    """The text with LF for CR LF; None if some line ends are different. Models are trained on LF."""
    both = data.count(b"\r\n")
    if both == 0 or not both == data.count(b"\r") == data.count(b"\n"):
        return None
    return data.replace(b"\r\n", b"\n")


def _is_noise(data: bytes) -> bool:
    """Whether no model of text can make these bytes smaller, such as those of a picture or an archive."""
    try:
        data.decode()
        return False
    except UnicodeDecodeError:
        return len(zlib.compress(data, 1)) >= len(data)
