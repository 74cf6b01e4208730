"""Starting another process of this program: which interpreter, which packages, which threads."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules.

    `-P` keeps the current folder, which may hold a `core/` of its own, off the import path.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment for `module_command`: this copy of the program comes first on the path."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    calm_threads(environment)
    return environment


def calm_threads(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads spin only briefly while they wait, unless the user has chosen otherwise.

    By default they spin for milliseconds, and steps become several times slower as soon as anything else,
    such as the console, wants a core; not spinning at all makes steps take 1.6 times as long on an idle
    machine (benchmarks/RESULTS.md). Must be set before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")
