"""The same test suite on every machine: no time limits, no settings from the user's terminal."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, and how long generating it takes, depends on the machine and not on us.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Settings that a terminal, a user or a build machine may have, and that would change output.
for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)
for name in [name for name in os.environ if name.startswith(("TEXTUAL", "MAMBA_TUI_EVENT"))]:
    del os.environ[name]

if sys.dont_write_bytecode:
    # Where Python may not keep what it compiled, each of the many processes that tests start would compile
    # torch anew: over two seconds. They keep it with what pytest keeps, also for the next time.
    BYTECODE = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, BYTECODE
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = BYTECODE

# What is prepared of the tests' texts goes with the tests, in their child processes too.
CACHE = tempfile.TemporaryDirectory(prefix="mamba-tui-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = CACHE.name

PATIENCE = 120.0
ROUNDS = 50


@pytest.fixture(autouse=True)
def handled_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a key and a pause of the pilot return only when everything that they caused has been handled.

    By default the pilot waits until the process uses little processor time, which is also true of a process
    that gets no time: the next key could arrive before the dialog it is meant for.
    """
    module = sys.modules.get("textual.pilot")
    if module is None:
        return
    pilot_class, pause = module.Pilot, module.Pilot.pause

    async def patient_press(pilot: Any, *keys: str) -> None:
        for key in keys:
            await pilot.app._press_keys([key])
            await handled(pilot)

    async def patient_pause(pilot: Any, delay: float | None = None) -> None:
        await pause(pilot, delay)
        await handled(pilot)

    monkeypatch.setattr(pilot_class, "press", patient_press)
    monkeypatch.setattr(pilot_class, "pause", patient_pause)


async def handled(pilot: Any) -> None:
    """Wait until no widget on screen has a message left.

    Timers may run forever; this returns all the same.
    """
    quiet = 0  # twice in a row: a widget without messages may be at work on its last one
    for _ in range(ROUNDS):
        if not await pilot._wait_for_screen(PATIENCE):
            return  # the console has ended
        screen = pilot.app.screen
        pumps = [pilot.app, *screen.walk_children(with_self=True)]
        busy = screen._callbacks or any(pump.message_queue_size or pump._next_callbacks for pump in pumps)
        quiet = 0 if busy else quiet + 1
        if quiet == 2:
            return


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there for good: torch and all tests. It took an eighth of
    the suite's time to look at them again and again."""
    gc.collect()
    gc.freeze()
