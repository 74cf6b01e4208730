"""Imported first by a trainer under test: holds it at chosen places until it is released or killed.

HOLD_AT lists the places, in order: "step 12" (its event is written), "evaluating 1" (the first evaluation
begins), "saving 2" (the second checkpoint is written and has not got its name yet). At the nth place the
file `held-n` appears in HOLD_FOLDER; `go-n` lets it continue. See `Holds` in tests/run_tools.py.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

folder, parent = os.environ["HOLD_FOLDER"], os.getppid()
places = [place.split() for place in os.environ["HOLD_AT"].split(",")]
passed = 0
seen = 0
replace, write = os.replace, os.write


def hold() -> None:
    """Wait here. Without the test that waits for us there is nothing to stay for."""
    global passed, seen
    number, passed, seen = passed, passed + 1, 0
    with open(os.path.join(folder, f"held-{number}"), "w"):
        pass
    while not os.path.exists(os.path.join(folder, f"go-{number}")):
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.01)


def here(what: str, step: int) -> bool:
    """Whether this is the next place to hold at."""
    global seen
    if passed == len(places) or places[passed][0] != what:
        return False
    seen = step if what == "step" else seen + 1
    return seen >= int(places[passed][1])


def held_replace(source: Any, target: Any, **folders: Any) -> None:
    if str(target).endswith(".pt") and here("saving", 0):
        hold()
    replace(source, target, **folders)


def held_write(descriptor: int, data: Any) -> int:
    try:
        return write(descriptor, data)
    finally:
        for line in bytes(data).splitlines():
            event = json.loads(line) if line.startswith(b"{") else {}
            starts_evaluation = event.get("state") == "evaluating" and event["progress"] == 0.0
            if (starts_evaluation and here("evaluating", 0)) or (
                event.get("kind") == "step" and here("step", event["step"])
            ):
                hold()
                break


os.replace, os.write = held_replace, held_write  # type: ignore[assignment]
