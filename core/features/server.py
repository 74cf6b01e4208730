"""The process that computes features, `python -P -m core.features.server`; see `core/system/json_lines.py`.

embed    {"id", "texts", "checkpoint", "device", "layer", "per", "out", "dtype"}
->  progress {"done", "size", "name"} ..., done {"rows", "width", "seconds"}
similar  {"id", "passage", "texts", "checkpoint", "device", "layer", "per", "count"}
->  progress {"done", "size", "name"} ..., done {"hits", "passages", "files", "indexed", "skipped", "seconds"}

A hit has the fields of `core.features.similar.Hit`. The model of the last `similar` stays loaded.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.system.allocator import keep_freed_memory
from core.system.json_lines import Handlers, Request, serve_standard_streams

if TYPE_CHECKING:
    from core.config.schema import RunConfig
    from core.features.similar import PassageFinder

PROGRESS_SECONDS = 0.2
MOST_HITS = 1_000


def _handlers() -> Handlers:
    # Imported only now: torch takes seconds, and the end of the input must be noticed meanwhile.
    from core.features.embed import embed
    from core.features.feature_file import write_features

    def on_embed(request: Request) -> None:
        began = time.monotonic()
        width, rows = embed(
            request.paths("texts"),
            Path(request.value("checkpoint", str)),
            device=request.value("device", str, "auto"),
            layer=request.value("layer", str, "waist"),
            per=request.value("per", str, "paragraph"),
            tell=_teller(request, "canceled; nothing was written"),
        )
        dtype = request.value("dtype", str, "float32")
        count = write_features(Path(request.value("out", str)), rows, width, dtype)
        request.reply("done", rows=count, width=width, seconds=time.monotonic() - began)

    return {"embed": on_embed, "similar": _Similar().answer}


def _teller(request: Request, canceled: str) -> Callable[[int, int, str], None]:
    """Reports progress now and then; raises UserError with that sentence if the request was canceled."""
    told = time.monotonic()

    def tell(done: int, size: int, name: str) -> None:
        nonlocal told
        if request.canceled:
            raise UserError(canceled)
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            request.reply("progress", done=done, size=size, name=name)

    return tell


class _Similar:
    """Answers `similar`, and keeps what the next passage will probably need too."""

    def __init__(self) -> None:
        self._loaded: tuple[Any, PassageFinder, RunConfig] | None = None

    def answer(self, request: Request) -> None:
        from core.evaluation.texts import find_texts
        from core.features.similar import PASSAGE

        began = time.monotonic()
        checkpoint = Path(request.value("checkpoint", str))
        count = request.value("count", int, 10)
        if not 1 <= count <= MOST_HITS:
            raise UserError(f"count is {count:,}; accepted: a whole number from 1 to {MOST_HITS:,}")
        passage, paths = request.value("passage", str), request.paths("texts")
        finder, config = self._finder(
            checkpoint,
            request.value("device", str, "auto"),
            request.value("layer", str, "waist"),
            request.value("per", str, PASSAGE),
        )
        tell = _teller(request, "canceled; files that were read to the end stay indexed")
        texts = find_texts(paths, config.data, checkpoint.parent, lambda name: tell(0, 0, name))
        answer = finder.nearest(passage, texts, count, tell)
        request.reply(
            "done",
            hits=[dataclasses.asdict(hit) for hit in answer.hits],
            passages=answer.passages,
            files=len(texts.texts),
            indexed=answer.indexed,
            skipped=texts.skipped,
            seconds=time.monotonic() - began,
        )

    def _finder(self, checkpoint: Path, device: str, layer: str, per: str) -> tuple[PassageFinder, RunConfig]:
        from core.checkpoint import config_of, load_model
        from core.features.similar import PassageFinder
        from core.system.hardware import resolve_device

        try:
            info = os.stat(checkpoint)
        except OSError as error:
            raise UserError(f"{checkpoint} cannot be read: {error.strerror}") from None
        key = (str(checkpoint), info.st_mtime_ns, info.st_size, info.st_ino, device, layer, per)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # two models may not fit
            model, tokenizer, payload = load_model(checkpoint, resolve_device(device))
            finder = PassageFinder(model, tokenizer, layer, per)
            self._loaded = (key, finder, config_of(payload, checkpoint))
        return self._loaded[1:]


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(serve_standard_streams(_handlers))
