"""The process that embeds, `python -P -m core.features.server`, see `core/system/json_lines.py`.

embed  {"id", "texts", "checkpoint", "device", "layer", "per", "out", "dtype"}
->  progress {"done", "size", "name"} ..., done {"rows", "width", "seconds"}
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from core.errors import UserError
from core.system.allocator import keep_freed_memory
from core.system.json_lines import Handlers, Request, serve_standard_streams

PROGRESS_SECONDS = 0.2


def _handlers() -> Handlers:
    # Only now: torch takes seconds to import, and meanwhile the end of the input must be noticed.
    from core.features.embed import embed
    from core.features.feature_file import write_features

    def on_embed(request: Request) -> None:
        began = told = time.monotonic()

        def tell(done: int, size: int, name: str) -> None:
            nonlocal told
            if request.canceled:
                raise UserError("canceled; nothing was written")
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                request.reply("progress", done=done, size=size, name=name)

        width, rows = embed(
            request.paths("texts"),
            Path(request.value("checkpoint", str)),
            device=request.value("device", str, "auto"),
            layer=request.value("layer", str, "waist"),
            per=request.value("per", str, "paragraph"),
            tell=tell,
        )
        dtype = request.value("dtype", str, "float32")
        count = write_features(Path(request.value("out", str)), rows, width, dtype)
        request.reply("done", rows=count, width=width, seconds=time.monotonic() - began)

    return {"embed": on_embed}


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(serve_standard_streams(_handlers))
