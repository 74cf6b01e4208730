"""The inspection process, `python -P -m core.inspection.server`; see `core/system/json_lines.py`.

`core.inspection.service.InspectionService` lists its operations.
"""

from __future__ import annotations

import sys

from core.system.allocator import keep_freed_memory
from core.system.json_lines import Handlers, serve_standard_streams


def _handlers() -> Handlers:
    # Imported only now: torch takes seconds, and the end of the input must be noticed meanwhile.
    from core.checkpoint import load_model
    from core.inspection.service import InspectionService

    return InspectionService(load_model).handlers()


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(serve_standard_streams(_handlers))
