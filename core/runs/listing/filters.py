"""The filter of a list of runs: `lr>1e-3 mamba2 -failed "long note"`.

A filter is terms with spaces between them, all of which must hold:

    word            in the name, state, mixers, dataset, tags or note
    "two words"     the same, with spaces
    -word           not there
    key>number      also >= < <= = != ; a number may end in k, M or G, a time in s, min, h or d
    key=text        a text, or one entry of a list; upper and lower case are the same
    key~text        contains the text

A key is a column of the list or any setting of the configuration. Where a value is not known, only != holds.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from core.config.setting import show
from core.errors import UserError
from core.runs.listing.columns import COLUMNS, Column, column
from core.runs.listing.summary import RunSummary

Test = Callable[[RunSummary], bool]

_TERM = re.compile(r"""(?:[^\s"]|"[^"]*")+""")
_COMPARISON = re.compile(r"([A-Za-z_][\w.]*)(>=|<=|!=|=|>|<|~)(.*)", re.DOTALL)
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(k|M|G|s|min|h|d)?", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
}
_WORDS = ("name", "state", "mixers", "dataset", "tags", "note")
_TEXTS = ("name", "state", "shape", "mixers", "dataset", "tags", "note")


def compiled(text: str, where: str = "filter") -> Test:
    """A test for runs. Raises UserError, one sentence, if the text isn't a filter."""
    if text.count('"') % 2:
        raise UserError(f'{where}: a quote is not closed in {show(text)}; accepted: "two words"')
    tests = [_term(term, where) for term in _TERM.findall(text)]
    return lambda run: all(test(run) for test in tests)


def _term(term: str, where: str) -> Test:
    comparison = _COMPARISON.fullmatch(term)
    if comparison is not None:
        return _compare(comparison[1], comparison[2], comparison[3].replace('"', ""), where)
    if re.match(r"[<>=!~]", term):
        raise UserError(f"{where}: {show(term)} has no key; accepted: key{term}, such as lr>1e-3")
    refused = term.startswith("-") and len(term) > 1
    word = term.removeprefix("-").replace('"', "").lower() if refused else term.replace('"', "").lower()
    return lambda run: (
        refused != any(word in text for name in _WORDS for text in _texts(COLUMNS[name].value(run)))
    )


def _compare(key: str, sign: str, wanted: str, where: str) -> Test:
    by = column(key, where)
    if not wanted:
        raise UserError(f"{where}: {key}{sign} has no value; accepted: {key}{sign}VALUE")
    if sign == "~":
        return lambda run: any(wanted.lower() in text for text in _texts(by.value(run)))
    number = _number(wanted)
    if sign in ("=", "!="):
        return lambda run: _equal(by.value(run), wanted.lower(), number) == (sign == "=")
    if by.name in _TEXTS:
        raise UserError(
            f"{where}: {by.name} is a text, which is not {sign} {show(wanted)}; accepted: =, != and ~"
        )
    if number is None:
        raise UserError(
            f"{where}: {show(wanted)} is not a number; accepted after {key}{sign}: 0.5, 1e-3, 20k, 2h ..."
        )
    return _ordered(by, _ORDER[sign], number)


def _ordered(by: Column, compare: Callable[[Any, Any], bool], number: float) -> Test:
    def test(run: RunSummary) -> bool:
        value = by.value(run)
        entries = value if isinstance(value, (tuple, list)) else (value,)
        return any(_is_number(entry) and compare(entry, number) for entry in entries)

    return test


def _equal(value: Any, text: str, number: float | None) -> bool:
    for entry in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(entry, bool):
            if str(entry).lower() == text:
                return True
        elif _is_number(entry):
            if number is not None and math.isclose(entry, number, rel_tol=1e-9):
                return True
        elif str(entry).lower() == text and entry is not None:
            return True
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(entry).lower() for entry in (value if isinstance(value, (tuple, list)) else (value,))]


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return float(match[1]) * _UNITS.get((match[2] or "").lower(), 1.0)
