"""The process that exports weights, `python -P -m core.checkpoint_export`; see `core/system/json_lines.py`.

export  {"id", "checkpoint", "target"}  ->  done {"bytes"}
"""

from __future__ import annotations

import sys
from pathlib import Path

from core.errors import UserError
from core.system.json_lines import Handlers, Request, serve_standard_streams


def _handlers() -> Handlers:
    # Imported only now: torch takes seconds, and the end of the input must be noticed meanwhile.
    from core.checkpoint import export_weights

    def on_export(request: Request) -> None:
        checkpoint, target = Path(request.value("checkpoint", str)), Path(request.value("target", str))
        try:
            size = export_weights(checkpoint, target)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}") from None
        request.reply("done", bytes=size)

    return {"export": on_export}


if __name__ == "__main__":
    sys.exit(serve_standard_streams(_handlers))
