"""`core` is a common name: another package of that name on PYTHONPATH must not replace ours."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def use_own_core() -> None:
    """Make `import core` load the package beside this one, whatever else is on the path."""
    folder = Path(__file__).resolve().parent.parent / "core"
    if "core" in sys.modules and _is_ours(sys.modules["core"], folder):
        return
    spec = spec_from_file_location("core", folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        return
    for name in [name for name in sys.modules if name == "core" or name.startswith("core.")]:
        del sys.modules[name]
    sys.modules["core"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


def _is_ours(module: object, folder: Path) -> bool:
    return any(
        os.path.exists(path) and os.path.samefile(path, folder) for path in getattr(module, "__path__", ())
    )
