"""One configuration key: its declaration, the values it accepts, and the check of a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError

Value = bool | int | float | str | tuple[int, ...] | tuple[str, ...]

# Upper bound of counts without one: more steps than any machine takes, and every integer type can hold it.
LARGEST_COUNT = 1_000_000_000
# Much smaller numbers become 0 when they are multiplied in float32, the arithmetic of training.
SMALLEST_FRACTION = 1e-12
LONGEST_TEXT = 1 << 16
# How much of a value an error message repeats.
SHOWN_CHARACTERS = 120
SHOWN_ENTRIES = 16


@dataclass(frozen=True)
class Problem:
    """One invalid value: the key, the value given, and what would be accepted."""

    key: str
    value: object
    accepted: str

    def __str__(self) -> str:
        return f"{shorten(self.key)} is {show(self.value)}; accepted: {self.accepted}"


MOST_PROBLEMS = 30
"""As many problems of a configuration are told in full; a file with more is hardly one."""


class ConfigError(UserError):
    """The configuration can't be used; `problems` lists every reason, not only the first."""

    def __init__(self, problems: list[Problem], source: str = "configuration") -> None:
        self.problems = problems
        self.source = source
        lines = [f"{source}: {problem}" for problem in problems[:MOST_PROBLEMS]]
        if more := len(problems) - len(lines):
            lines.append(f"{source}: ... and {more:,} more problems")
        super().__init__("\n".join(lines))


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    fixed: bool = False,
    zero: str = "",
) -> Any:
    """Declare one key: its default, its help, and the values it accepts.

    `low` and `high` are inclusive bounds, `above` is an exclusive lower bound; whole numbers have the upper
    bound LARGEST_COUNT by default. `fixed` marks a key that can't change when a run is resumed, because its
    checkpoints would no longer fit. `zero` is the word for 0 if 0 is a choice and not a number, such as
    "auto": it is accepted, written to files and shown instead.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "low": low,
        "high": LARGEST_COUNT if high is None and type(default) is int else high,
        "above": above,
        "choices": choices,
        "fixed": fixed,
        "zero": zero,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """The declaration of one key."""

    key: str
    group: str
    kind: type
    default: Value
    per_layer: bool
    help: str
    unit: str
    low: float | None
    high: float | None
    above: float | None
    choices: tuple[str, ...]
    fixed: bool
    zero: str

    def in_words(self, value: Any) -> Any:
        """The value as it is written and shown: the word for 0 if there is one."""
        return self.zero if self.zero and type(value) in (int, float) and value == 0 else value

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        return f"{self.accepted_entry}, or a list of one per layer" if self.per_layer else self.accepted_entry

    @property
    def accepted_entry(self) -> str:
        """The accepted values of one entry, in words."""
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "text"
        words = "a whole number" if self.kind is int else "a number"
        if self.above is not None:
            words += f" above {_plain(self.above)}"
        if self.low is not None and self.high is not None:
            words += f" from {_plain(self.low)} to {_plain(self.high)}"
        elif self.low is not None:
            words += f" of at least {_plain(self.low)}"
        elif self.high is not None:
            words += f" and at most {_plain(self.high)}"
        return f'"{self.zero}" or {words}' if self.zero else words


def _plain(bound: float) -> str:
    """A bound without an exponent: 1,048,576 and not 1.04858e+06."""
    return f"{bound:,.0f}" if abs(bound) >= 1e6 else f"{bound:g}"


def checked(item: Setting, value: object, problems: list[Problem], name: str = "") -> Value:
    """The value converted to the key's type.

    If type or bounds don't fit, adds a problem under `name` (such as `n_embd[3]`) and returns the default.
    """
    accepted = item.accepted_entry if name else item.accepted
    result = _converted(item, value)
    refusal = accepted if result is None else _refusal(item, result, accepted)
    if result is not None and not refusal:
        return result
    problems.append(Problem(name or item.key, value, refusal))
    return item.default[0] if isinstance(item.default, tuple) else item.default


def _converted(item: Setting, value: object) -> Value | None:
    """The value converted to the key's type, or None if it has another type."""
    if item.zero and isinstance(value, str) and value.lower() in (item.zero, "auto"):
        return item.kind(0)
    if isinstance(value, bool) and show(value) in item.choices:
        return show(value)  # once a boolean key: true means "true"
    if item.kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if item.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is item.kind else None  # type: ignore[return-value]


def _refusal(item: Setting, value: Value, accepted: str) -> str:
    """What would be accepted instead of a value of the right type; "" if it is valid."""
    if item.choices:
        return "" if value in item.choices else accepted
    if isinstance(value, str):
        return _text_refusal(value)
    if not isinstance(value, (int, float)):
        return ""
    if isinstance(value, float) and 0 < abs(value) < SMALLEST_FRACTION:
        return f"{accepted}, and nothing closer to 0 than {SMALLEST_FRACTION:g}"
    good = (
        (isinstance(value, int) or math.isfinite(value))
        and (item.low is None or value >= item.low)
        and (item.high is None or value <= item.high)
        and (item.above is None or value > item.above)
    )
    return "" if good else accepted


def _text_refusal(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        return f"text of at most {LONGEST_TEXT:,} characters"
    if "\0" in text:
        return "text without a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "valid Unicode text (a file whose name is not must be renamed first)"
    return ""


def show(value: object, depth: int = 0) -> str:
    """A value as written in a configuration file, shortened if it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    if isinstance(value, (tuple, list)):
        if depth == 4:
            return "[...]"
        more = ", ..." if len(value) > SHOWN_ENTRIES else ""
        return "[" + ", ".join(show(item, depth + 1) for item in value[:SHOWN_ENTRIES]) + more + "]"
    if isinstance(value, dict):
        return "a group of keys"
    return shorten(str(value))


def shorten(text: str) -> str:
    """The text itself, or its beginning and its length if it is long."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"
