"""The evaluation process, `python -P -m core.evaluation.server`; see `core/system/json_lines.py`.

`core.evaluation.service.EvaluationService` lists its operations.
"""

from __future__ import annotations

import sys

from core.system.allocator import keep_freed_memory
from core.system.json_lines import Handlers, serve_standard_streams


def _handlers() -> Handlers:
    # Imported only now: torch takes seconds, and the end of the input must be noticed meanwhile.
    from core.checkpoint import load_model
    from core.evaluation.service import EvaluationService

    return EvaluationService(load_model).handlers()


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(serve_standard_streams(_handlers))
