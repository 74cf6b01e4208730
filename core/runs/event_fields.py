"""The field types of events: which values are in range, and how each type is read and written.

All JSON in a run folder may come from elsewhere. Each type defines what it accepts; a value of another type
or out of range makes its whole line invalid (`ValueError` here).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

LARGEST_INT = 2**53  # exact in float64, so that charts can show it
LATEST_TIME = float(2**37)  # in the year 6325, which every function of the clock still accepts
LONGEST_TEXT = 1 << 18
DEEPEST = 4
MOST_PAIRS = 1024
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def number_out(value: float) -> float | str:
    """A float as it is written: JSON can't express non-finite numbers, so they are strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain(value: object) -> object:
    """Any value as JSON can hold it, with non-finite numbers as strings, at any depth."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return number_out(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


class FieldType:
    """A field type: its name in docs/events.md, and how it is read and written."""

    word: str

    def read(self, value: object) -> Any:
        """The value from JSON. Raises ValueError if it is of another type or out of range."""
        raise NotImplementedError

    def write(self, value: Any) -> object:
        """The value as JSON can hold it."""
        return value


@dataclass(frozen=True)
class Whole(FieldType):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = LARGEST_INT
    word: str = "int"

    def read(self, value: object) -> int:
        """As `FieldType.read`."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"not a whole number from {self.low} to {self.high}")
        return value

    def write(self, value: int) -> object:
        """As `FieldType.write`."""
        return int(value)


@dataclass(frozen=True)
class Real(FieldType):
    """A number from `low` to `high`; NaN and infinities, which are strings in JSON, unless `finite`."""

    low: float = -math.inf
    high: float = math.inf
    word: str = "number"
    finite: bool = False

    def read(self, value: object) -> float:
        """As `FieldType.read`."""
        if type(value) is str and value in NON_FINITE:
            number = NON_FINITE[value]
        elif type(value) is float or (type(value) is int and abs(value) < 1 << 1000):
            number = float(value)
        else:
            raise ValueError("not a number")
        if math.isfinite(number):
            good = self.low <= number <= self.high
        else:
            good = not self.finite and (math.isnan(number) or self.low <= number <= self.high)
        if not good:
            raise ValueError(f"not a number from {self.low} to {self.high}")
        return number

    def write(self, value: float) -> object:
        """As `FieldType.write`."""
        return number_out(float(value))


@dataclass(frozen=True)
class Words(FieldType):
    """A text, which the writer cuts to `longest` characters."""

    longest: int = LONGEST_TEXT
    word: str = "text"

    def read(self, value: object) -> str:
        """As `FieldType.read`."""
        if type(value) is not str or len(value) > self.longest:
            raise ValueError(f"not a text of at most {self.longest} characters")
        return value

    def write(self, value: str) -> object:
        """As `FieldType.write`."""
        return value[: self.longest]


@dataclass(frozen=True)
class YesNo(FieldType):
    """True or false."""

    word: str = "bool"

    def read(self, value: object) -> bool:
        """As `FieldType.read`."""
        if type(value) is not bool:
            raise ValueError("neither true nor false")
        return value


@dataclass(frozen=True)
class Values(FieldType):
    """A mapping of names to plain values; with `pairs`, to lists of two."""

    pairs: bool = False

    @property
    def word(self) -> str:  # type: ignore[override]
        """As `FieldType.word`."""
        return "{key: [old, new]}" if self.pairs else "{}"

    def read(self, value: object) -> dict[str, Any]:
        """As `FieldType.read`."""
        if type(value) is not dict or not _plain(value, DEEPEST):
            raise ValueError("not a mapping of plain values")
        if self.pairs and not all(type(item) is list and len(item) == 2 for item in value.values()):
            raise ValueError("not a mapping to lists of two")
        return value

    def write(self, value: Mapping[str, Any]) -> object:
        """As `FieldType.write`."""
        return plain(value)


@dataclass(frozen=True)
class Shares(FieldType):
    """A list of [text, share] pairs, such as how far each of some files has been read."""

    word: str = "[[text, 0..1]]"

    def read(self, value: object) -> tuple[tuple[str, float], ...]:
        """As `FieldType.read`."""
        if type(value) is not list or len(value) > MOST_PAIRS:
            raise ValueError(f"not a list of at most {MOST_PAIRS}")
        if not all(type(pair) is list and len(pair) == 2 for pair in value):
            raise ValueError("not a list of pairs")
        name, share = Words(4096), Real(0.0, 1.0, finite=True)
        return tuple((name.read(text), share.read(number)) for text, number in value)

    def write(self, value: Sequence[tuple[str, float]]) -> object:
        """As `FieldType.write`."""
        return [[text[:4096], round(float(share), 4)] for text, share in value[:MOST_PAIRS]]


class TextFigures(FieldType):
    """A list of [text, whole number, number, number], such as the loss of each of some files."""

    word = "[[text, int, number, number]]"

    def read(self, value: object) -> tuple[tuple[str, int, float, float], ...]:
        """As `FieldType.read`."""
        if type(value) is not list or len(value) > MOST_PAIRS:
            raise ValueError(f"not a list of at most {MOST_PAIRS}")
        if not all(type(row) is list and len(row) == 4 for row in value):
            raise ValueError("not a list of four values each")
        name = Words(4096)
        return tuple(
            (name.read(text), COUNT.read(count), NUMBER.read(one), NUMBER.read(other))
            for text, count, one, other in value
        )

    def write(self, value: Sequence[tuple[str, int, float, float]]) -> object:
        """As `FieldType.write`."""
        return [
            [text[:4096], count, number_out(one), number_out(other)]
            for text, count, one, other in value[:MOST_PAIRS]
        ]


def _plain(value: object, depth: int) -> bool:
    """Whether JSON values are in range all the way down."""
    if type(value) is int:
        return abs(value) <= LARGEST_INT
    if type(value) is str:
        return len(value) <= LONGEST_TEXT
    if type(value) is dict:
        return depth > 0 and all(_plain(item, depth - 1) for item in value.values())
    if type(value) is list:
        return depth > 0 and all(_plain(item, depth - 1) for item in value)
    return True


@dataclass(frozen=True)
class Reals(FieldType):
    """A list of at most `longest` numbers, each as `Real`."""

    longest: int = 4096
    word: str = "[number]"

    def read(self, value: object) -> list[float]:
        """As `FieldType.read`."""
        if type(value) is not list or len(value) > self.longest:
            raise ValueError(f"not a list of at most {self.longest} numbers")
        return [NUMBER.read(one) for one in value]

    def write(self, value: Sequence[float]) -> object:
        """As `FieldType.write`."""
        return [NUMBER.write(one) for one in value[: self.longest]]


COUNT = Whole()
NUMBER = Real()
MOMENT = Real(0.0, LATEST_TIME, finite=True)

Count = Annotated[int, COUNT]
Number = Annotated[float, NUMBER]
Numbers = Annotated[Sequence[float], Reals()]
NotNegative = Annotated[float, Real(0.0)]
Share = Annotated[float, Real(0.0, 1.0, "0..1")]
Moment = Annotated[float, MOMENT]
Text = Annotated[str, Words()]
Name = Annotated[str, Words(4096, "name")]
Flag = Annotated[bool, YesNo()]
FileFigures = Annotated[tuple[tuple[str, int, float, float], ...], TextFigures()]
Readings = Annotated[tuple[tuple[str, float], ...], Shares()]
Settings = Annotated[Mapping[str, Any], Values()]
Changes = Annotated[Mapping[str, Any], Values(pairs=True)]
