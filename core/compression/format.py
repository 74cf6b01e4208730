"""The file that `mamba-tui compress` writes. All numbers are little-endian.

    MAGIC, version (2 bytes)
    fingerprint of the model (16), of the tokenizer (16), of the arithmetic (8), streams of a segment (2)
    the arithmetic in words: length (1) and UTF-8
    segments, each: kind (1), flags (1), bytes (4), tokens (4), streams (2), words (4), CRC-32 of its bytes
        (4), then the coder's states (8 a stream) and its words (4 each), or its bytes if it is stored
    END (1), bytes in total (8), SHA-256 of the contents (32)
    BLAKE2b-128 of all before (16)

The last sum is checked before anything else is believed, so a file that is damaged, shortened or longer is
refused whole; the others say that what was decompressed is what was compressed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.compression.streams import Coded
from core.errors import UserError
from core.system.files import open_to_read

MAGIC = b"\x89MTZ\r\n\x1a\n"
VERSION = 1
END, CODED, STORED = 0, 1, 2
LINE_ENDS = 1
"""Flag: each line end was CR LF, and only LF was coded."""
MAX_SEGMENT = 1 << 26
MAX_STREAMS = 1 << 12
_HEAD = struct.Struct("<H16s16s8sHB")
_SEGMENT = struct.Struct("<BIIHII")
_TAIL = struct.Struct("<Q32s")
_SUM_BYTES = 16
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Header:
    """What must be the same before a file can be decompressed."""

    model: bytes
    tokenizer: bytes
    arithmetic: bytes
    """A hash of results of the arithmetic, see `core/compression/fingerprints.py`."""
    streams: int
    """The most streams that a segment has: the arithmetic may depend on it."""
    arithmetic_name: str


@dataclass(frozen=True)
class Segment:
    """A part of the contents: coded, or stored as it is."""

    size: int
    """Bytes of the contents."""
    checksum: int
    coded: Coded | None = None
    stored: bytes = b""
    line_ends: bool = False

    @property
    def cost(self) -> int:
        """Its bytes in the file."""
        if self.coded is None:
            return 1 + _SEGMENT.size + len(self.stored)
        return 1 + _SEGMENT.size + 8 * len(self.coded.states) + 4 * len(self.coded.words)


class Writer:
    """Writes a compressed file from beginning to end."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self._file = file
        self._sum = hashlib.blake2b(digest_size=_SUM_BYTES)
        self.written = 0
        name = header.arithmetic_name.encode()[:255]
        self._put(MAGIC)
        fingerprints = (header.model, header.tokenizer, header.arithmetic)
        self._put(_HEAD.pack(VERSION, *fingerprints, header.streams, len(name)) + name)

    def segment(self, segment: Segment) -> None:
        """Add a segment."""
        coded = segment.coded
        kind = STORED if coded is None else CODED
        tokens, streams, words = (
            (0, 0, 0) if coded is None else (coded.tokens, len(coded.states), len(coded.words))
        )
        flags = LINE_ENDS if segment.line_ends else 0
        self._put(bytes((kind,)))
        self._put(_SEGMENT.pack(flags, segment.size, tokens, streams, words, segment.checksum))
        if coded is None:
            self._put(segment.stored)
        else:
            self._put(coded.states.astype("<u8").tobytes() + coded.words.astype("<u4").tobytes())

    def end(self, size: int, sha256: bytes) -> None:
        """Finish with the contents' length and hash."""
        self._put(bytes((END,)) + _TAIL.pack(size, sha256))
        self._file.write(self._sum.digest())
        self.written += _SUM_BYTES

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self.written += len(data)


class Reader:
    """A compressed file, checked as a whole before anything in it is trusted."""

    def __init__(self, path: Path) -> None:
        """Raises UserError unless the file is intact and of a known version, OSError if unreadable.

        `size` and `sha256` are those of the contents.
        """
        self.path = path
        self._file = open_to_read(path, follow_links=True)
        try:
            self._check()
            self.header = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def segments(self) -> Iterator[Segment]:
        """The segments in order. Raises UserError if they are impossible."""
        while (kind := self._take(1)[0]) != END:
            flags, size, tokens, streams, words, checksum = _SEGMENT.unpack(self._take(_SEGMENT.size))
            line_ends = bool(flags & LINE_ENDS)
            if kind not in (CODED, STORED) or flags & ~LINE_ENDS or size > MAX_SEGMENT:
                raise self._strange()
            if kind == STORED:
                yield Segment(size, checksum, stored=self._take(size), line_ends=line_ends)
                continue
            if not 0 < streams <= min(self.header.streams, tokens) or tokens > size:
                raise self._strange()
            states = np.frombuffer(self._take(8 * streams), "<u8").astype(np.uint64)
            coded = Coded(tokens, states, np.frombuffer(self._take(4 * words), "<u4").astype(np.uint32))
            yield Segment(size, checksum, coded, line_ends=line_ends)
        if self._left != _TAIL.size:
            raise self._strange()

    def _check(self) -> None:
        """Raise UserError unless the file begins like ours and its checksum is right."""
        if self._file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{self.path} was not written by mamba-tui compress")
        length = os.fstat(self._file.fileno()).st_size
        remaining = length - len(MAGIC) - _SUM_BYTES
        digest = hashlib.blake2b(MAGIC, digest_size=_SUM_BYTES)
        while remaining > 0 and (block := self._file.read(min(_BLOCK, remaining))):
            digest.update(block)
            remaining -= len(block)
        if remaining or self._file.read() != digest.digest():
            raise UserError(
                f"{self.path} is damaged: its checksum is wrong, so nothing was decompressed; "
                "take another copy of the file"
            )
        self._left = length - len(MAGIC) - _SUM_BYTES
        if self._left < _HEAD.size + 1 + _TAIL.size:
            raise self._strange()
        self._file.seek(length - _SUM_BYTES - _TAIL.size)
        self.size, self.sha256 = _TAIL.unpack(self._file.read(_TAIL.size))
        self._file.seek(len(MAGIC))

    def _header(self) -> Header:
        version, model, tokenizer, arithmetic, streams, length = _HEAD.unpack(self._take(_HEAD.size))
        if version != VERSION:
            raise UserError(
                f"{self.path} has version {version} of the format; this mamba-tui reads version {VERSION}"
            )
        if not 0 < streams <= MAX_STREAMS:
            raise self._strange()
        name = self._take(length).decode("utf-8", "replace")
        return Header(model, tokenizer, arithmetic, streams, name)

    def _take(self, count: int) -> bytes:
        """The next bytes, without the checksum at the end."""
        self._left -= count
        data = self._file.read(count) if self._left >= 0 else b""
        if len(data) != count:
            raise self._strange()
        return data

    def _strange(self) -> UserError:
        return UserError(f"{self.path} is not what mamba-tui compress writes, so it was not decompressed")
