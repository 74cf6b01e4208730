"""Starting another process of this program: which interpreter, which packages, which threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules.

    `-P` keeps the current folder, which may hold a `core/` of its own, off the import path.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment for `module_command`: this copy of the program comes first on the path.

    Threads that wait by spinning make a step several times slower as soon as anything else wants a
    core, and the console does; so they sleep, unless the user has chosen otherwise.
    """
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
