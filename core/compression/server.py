"""The compression process, `python -P -m core.compression.server`; see `core/system/json_lines.py`.

    compress    {"id", "source", "target", "checkpoint", "device", "streams": 0, "workers": 0}
    decompress  {"id", "source", "target", "checkpoint", "device", "workers": 0}
    ->  progress {"done", "size"} ..., done {"size", "compressed", "streams", "seconds", "loading"}

0 streams or workers means as many as seem best. Canceled, it leaves no file.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from core.system.allocator import keep_freed_memory
from core.system.json_lines import Handlers, Request, serve_standard_streams


def _handlers() -> Handlers:
    # Imported only now: torch takes seconds, and the end of the input must be noticed meanwhile.
    from core.compression.compress import compress, decompress

    def answer(request: Request, function: Any, **more: Any) -> None:
        result = function(
            *(Path(request.value(key, str)) for key in ("source", "target", "checkpoint")),
            device=request.value("device", str, "auto"),
            workers=request.value("workers", int, 0) or None,
            tell=lambda done, size: request.reply("progress", done=int(done), size=size),
            stopped=lambda: request.canceled,
            **more,
        )
        request.reply("done", **dataclasses.asdict(result))

    def on_compress(request: Request) -> None:
        answer(request, compress, streams=request.value("streams", int, 0) or None)

    return {"compress": on_compress, "decompress": lambda request: answer(request, decompress)}


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(serve_standard_streams(_handlers))
