"""What an event is made of (docs/events.md in a form the program can check)."""

from __future__ import annotations

import math
from typing import Any

SCHEMA = 1

Event = dict[str, Any]

STATES = ("preparing", "compiling", "training", "paused", "evaluating", "sampling", "saving", "stopping")
REASONS = ("finished", "stopped", "failed", "interrupted")

_NUMBER = (int, float)
_NONE = type(None)
_WHOLE = (int,)
_TEXT = (str,)

# kind -> field -> the types it may have. A field that may be absent has None among its types.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {
        "schema": _WHOLE,
        "run": _TEXT,
        "pid": _WHOLE,
        "boot_id": _TEXT,
        "started": _NUMBER,
        "device": _TEXT,
        "parameters": _WHOLE,
        "vocab_size": _WHOLE,
        "tokens_per_step": _WHOLE,
        "max_iters": _WHOLE,
        "resumed_from": (int, _NONE),
        "versions": (dict,),
        "config": (dict,),
        "changes": (dict,),
    },
    "state": {"state": _TEXT, "detail": _TEXT, "step": _WHOLE, "progress": (*_NUMBER, _NONE)},
    "step": {
        "step": _WHOLE,
        "steps": _WHOLE,
        "loss": _NUMBER,
        "loss_min": _NUMBER,
        "loss_max": _NUMBER,
        "learning_rate": _NUMBER,
        "gradient_norm": _NUMBER,
        "tokens_per_second": _NUMBER,
        "tokens": _WHOLE,
        "data_wait": _NUMBER,
        "device_memory": (int, _NONE),
        "device_utilization": (*_NUMBER, _NONE),
        "epoch": _NUMBER,
    },
    "eval": {
        "step": _WHOLE,
        "train_loss": _NUMBER,
        "validation_loss": _NUMBER,
        "bits_per_byte": _NUMBER,
        "train_bits_per_byte": _NUMBER,
        "seconds": _NUMBER,
    },
    "sample": {"step": _WHOLE, "prompt": _TEXT, "text": _TEXT},
    "checkpoint": {
        "step": _WHOLE,
        "file": _TEXT,
        "bytes": _WHOLE,
        "train_loss": (*_NUMBER, _NONE),
        "validation_loss": (*_NUMBER, _NONE),
        "bits_per_byte": (*_NUMBER, _NONE),
        "best": (bool,),
        "seconds": _NUMBER,
    },
    "command": {"id": _TEXT, "command": _TEXT, "accepted": (bool,), "message": _TEXT},
    "warning": {"message": _TEXT},
    "error": {"message": _TEXT, "advice": _TEXT, "traceback": (str, _NONE)},
    "end": {"reason": _TEXT, "step": _WHOLE, "message": _TEXT, "checkpoint": (str, _NONE)},
}

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_CHECKS = {kind: tuple(fields.items()) for kind, fields in FIELDS.items()}


def number_out(value: float) -> float | str:
    """A float as it is written: JSON has no word for what is not finite, so a string stands for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain(value: object) -> object:
    """Any value as JSON can carry it, with non-finite numbers as strings, at any depth."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return number_out(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def valid(event: object) -> bool:
    """True when `event` can be used; turns its non-finite strings back into floats on the way.

    Kinds of a later version of the program pass as they are: readers skip what they do not know.
    """
    if type(event) is not dict:
        return False
    kind, moment = event.get("kind"), event.get("time")
    if type(kind) is not str or type(moment) not in _NUMBER:
        return False
    for name, kinds in _CHECKS.get(kind, ()):
        value = event.get(name)
        found = type(value)
        if found in kinds:
            continue
        if found is str and float in kinds and value in NON_FINITE:
            event[name] = NON_FINITE[value]
            continue
        return False
    return True
