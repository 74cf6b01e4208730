"""Compresses a file without loss by a model's probabilities, and decompresses it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.checkpoint import model_fingerprint
from core.compression.engine import Engine
from core.compression.fingerprints import (
    arithmetic_fingerprint,
    arithmetic_name,
    tokenizer_fingerprint,
)
from core.compression.format import Header, Reader, Writer
from core.compression.plan import Plan, plan
from core.compression.workers import Progress, code_all
from core.errors import UserError
from core.system.files import open_to_read, replacing
from core.system.hardware import available_cores, resolve_device

Tell = Callable[[float, int], object]
"""Called several times a second with the bytes that are done and the total."""
LITTLE = 1 << 14
"""The bytes that one process restores in the time it takes to start a second one."""
CUT_WITHIN = 256
"""How many bytes after a segment's planned end a better place to cut is looked for."""


@dataclass(frozen=True)
class Result:
    """The result."""

    size: int
    """Bytes of the contents."""
    compressed: int
    """Bytes of the compressed file."""
    streams: int
    seconds: float
    loading: float
    """Seconds of them until the model was loaded and tried."""


def compress(
    source: Path,
    target: Path,
    checkpoint: Path,
    *,
    device: str = "auto",
    streams: int | None = None,
    workers: int | None = None,
    tell: Tell = lambda done, size: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Write `source`, compressed by a checkpoint's model, to `target`, which is replaced only on success.

    `streams` are the texts read in parallel (chosen by the length if None); `workers` the processes on CPU,
    which affect only the speed. Raises UserError, and OSError from reading or writing.
    """
    began = time.monotonic()
    engine = Engine.load(checkpoint, resolve_device(device))
    with open_to_read(source, follow_links=True) as file:
        size = os.fstat(file.fileno()).st_size
        cut = plan(size, cuda=engine.device.type == "cuda", streams=streams)
        digest = hashlib.sha256()
        parts = _parts(file, cut, digest.update)
        progress = Progress(lambda done: tell(min(done, size), size), stopped)
        with replacing(target, private=False) as out:
            writer = Writer(out, _header(engine, cut.streams))
            loading = time.monotonic() - began
            many, read = _workers(engine, workers, -(-size // cut.segment)), 0
            for data, segment in code_all(engine, checkpoint, cut.streams, parts, many, progress):
                read += len(data)
                writer.segment(segment)
            if read != size:
                raise UserError(f"{source} changed while it was being read; compress it again")
            writer.end(size, digest.digest())
    return Result(size, writer.written, cut.streams, time.monotonic() - began, loading)


def decompress(
    source: Path,
    target: Path,
    checkpoint: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    tell: Tell = lambda done, size: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Write the contents of `source` to `target`, which is replaced only by exactly the bytes compressed.

    `device` auto is the kind that compressed. Raises UserError for a damaged file or another model, tokenizer
    or arithmetic, and OSError from reading or writing.
    """
    began = time.monotonic()
    with Reader(source) as reader:
        header = reader.header
        engine = Engine.load(checkpoint, _device(device, header, source))
        _check_model(engine, header, source, checkpoint)
        loading = time.monotonic() - began
        progress = Progress(lambda done: tell(min(done, reader.size), reader.size), stopped)
        digest, size = hashlib.sha256(), 0
        with replacing(target, private=False) as out:
            many = _workers(engine, workers, reader.size // LITTLE)
            segments = reader.segments()
            for data, _ in code_all(engine, checkpoint, header.streams, segments, many, progress):
                size += len(data)
                digest.update(data)
                out.write(data)
            if size != reader.size or digest.digest() != reader.sha256:
                raise UserError(
                    f"{source} did not decompress to what was compressed (its hash differs), so nothing was "
                    "written"
                )
    return Result(size, os.stat(source).st_size, header.streams, time.monotonic() - began, loading)


def _workers(engine: Engine, wanted: int | None, segments: int) -> int:
    if engine.device.type != "cpu":
        return 1
    return min(wanted or available_cores(), max(1, segments))


def _header(engine: Engine, streams: int) -> Header:
    return Header(
        model_fingerprint(engine.model),
        tokenizer_fingerprint(engine.tokenizer),
        arithmetic_fingerprint(engine.model, engine.tokenizer.eot, streams),
        streams,
        arithmetic_name(engine.device),
    )


def _device(wanted: str, header: Header, source: Path) -> str:
    """The device to decompress on: the kind that compressed."""
    kind = header.arithmetic_name.partition(",")[0]
    device = resolve_device(wanted if wanted != "auto" or kind not in ("cpu", "cuda", "mps") else kind)
    if device.partition(":")[0] != kind:
        raise UserError(
            f"{source} was compressed with {header.arithmetic_name}, and --device is {wanted}; "
            f"accepted: {kind}, because another device's arithmetic gives other bits"
        )
    return device


def _check_model(engine: Engine, header: Header, source: Path, checkpoint: Path) -> None:
    """Raise UserError unless model, tokenizer and arithmetic are those that compressed."""
    for what, own, wanted in (
        ("tokenizer", tokenizer_fingerprint(engine.tokenizer), header.tokenizer),
        ("model", model_fingerprint(engine.model), header.model),
    ):
        if own != wanted:
            raise UserError(
                f"{source} was compressed with another {what} ({wanted.hex()[:12]}) than {checkpoint} has "
                f"({own.hex()[:12]}); name the one that compressed it with --run or --checkpoint"
            )
    if arithmetic_fingerprint(engine.model, engine.tokenizer.eot, header.streams) != header.arithmetic:
        raise UserError(
            f"{source} was compressed with {header.arithmetic_name}, whose last digits differ from those of "
            f"{arithmetic_name(engine.device)} here; decompress it where it was compressed"
        )


def _parts(file: IO[bytes], cut: Plan, seen: Callable[[bytes], object]) -> Iterator[bytes]:
    """The segments of a file. Cuts are made between lines or words if there are some nearby."""
    kept = b""
    while data := kept + file.read(max(0, cut.segment + CUT_WITHIN - len(kept))):
        end = _cut(data, cut.segment)
        seen(data[:end])
        yield data[:end]
        kept = data[end:]


def _cut(data: bytes, wanted: int) -> int:
    """Where to cut after `wanted` bytes."""
    if len(data) < wanted + CUT_WITHIN:
        return len(data)
    for mark, behind in ((b"\n", 1), (b" ", 0)):
        if (at := data.find(mark, wanted, wanted + CUT_WITHIN)) >= 0:
            return at + behind
    return wanted
