"""The variants of a sweep: `learning_rate=1e-3,2e-3` or `dropout=0..0.2` as changes of a configuration."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.config.changes import replace
from core.config.files import parse_value
from core.config.schema import SETTINGS, RunConfig, flat, nearest_key
from core.config.setting import Value, show
from core.errors import UserError

MOST_VARIANTS = 500
# A range this wide belongs to a quantity that works in factors, such as a learning rate.
LOGARITHMIC_RATIO = 10.0

Changes = dict[str, Value]


@dataclass(frozen=True)
class Axis:
    """One key that is varied: over `values`, or randomly between `low` and `high`."""

    key: str
    values: tuple[object, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, chance: random.Random) -> object:
        """A random value; in a wide range, uniform in its logarithm."""
        if self.values:
            return chance.choice(self.values)
        if self.low > 0 and self.high / self.low >= LOGARITHMIC_RATIO:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = chance.uniform(self.low, self.high)
        return round(value) if SETTINGS[self.key].kind is int else float(f"{value:.3g}")


def parse_axes(text: str) -> list[Axis]:
    """Axes as typed in one line, with spaces between them. Raises UserError."""
    terms: list[str] = []
    for term in _split(text, " "):
        if terms and (terms[-1].endswith(",") or term.startswith(",")):
            terms[-1] += term
        else:
            terms.append(term)
    return [parse_axis(term, "") for term in terms]


def parse_axis(text: str, flag: str = "--sweep") -> Axis:
    """An axis as typed: `key=value,value,...` or `key=low..high`. Raises UserError."""
    named = f"{flag} is {show(text)}" if flag else show(text)
    key, equals, rest = text.partition("=")
    key = key.strip()
    if not equals or not rest.strip():
        example = f"{flag} learning_rate=1e-3,2e-3".strip()
        raise UserError(
            f"{named}; accepted: key=value,value such as {example}, or key=low..high with random variants "
            "(--random N)"
        )
    if key not in SETTINGS:
        raise UserError(f"{named}; accepted: {nearest_key(key)} (this key is unknown)")
    low, dots, high = rest.partition("..")
    if dots:
        return _range(key, low, high, named)
    values: list[object] = []
    for part in _split(rest, ","):
        value = parse_value(part)
        if value in values:
            raise UserError(f"{named}; accepted: each value once ({show(value)} is repeated)")
        values.append(value)
    return Axis(key, tuple(values))


def _range(key: str, low: str, high: str, named: str) -> Axis:
    ends = [parse_value(low.strip()), parse_value(high.strip())]
    numbers = [float(end) for end in ends if isinstance(end, (int, float)) and not isinstance(end, bool)]
    item = SETTINGS[key]
    if len(numbers) < 2 or not numbers[0] < numbers[1] or item.kind not in (int, float) or item.per_layer:
        raise UserError(f"{named}; accepted: key=low..high, two numbers of which the second is larger")
    return Axis(key, low=numbers[0], high=numbers[1])


def _split(text: str, separator: str) -> list[str]:
    """The parts that are not empty, split where the separator is outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def variants(base: RunConfig, axes: Sequence[Axis], drawn: int | None = None) -> list[Changes]:
    """What each variant changes in the base: every combination, or `drawn` different random ones.

    The random choice depends only on the base's seed. Raises UserError if an axis is given twice, a range has
    no --random, or there are too many variants; ConfigError names a combination that can't be used.
    """
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"the sweep names {twice} twice; accepted: each key once, with all its values")
    if drawn is None:
        if ranged := next((axis for axis in axes if not axis.values), None):
            raise UserError(
                f"{ranged.key}={ranged.low:g}..{ranged.high:g} is a range; give a number of random variants "
                "too (--random N)"
            )
        number = math.prod(len(axis.values) for axis in axes)
        if number <= MOST_VARIANTS:
            combinations = itertools.product(*(axis.values for axis in axes))
            return _checked(base, [dict(zip(keys, values)) for values in combinations])
    else:
        number = drawn
    if not 1 <= number <= MOST_VARIANTS:
        raise UserError(
            f"a sweep of {number:,} variants; accepted: from 1 to {MOST_VARIANTS}, or fewer with --random N"
        )
    chance = random.Random(base.training.seed)
    drawn_changes: list[dict[str, object]] = []
    for _ in range(100 * number):
        one = {axis.key: axis.draw(chance) for axis in axes}
        if one not in drawn_changes:
            drawn_changes.append(one)
        if len(drawn_changes) == number:
            break
    return _checked(base, drawn_changes)


def _checked(base: RunConfig, variants: Iterable[dict[str, object]]) -> list[Changes]:
    """The changes, with values converted as the configuration converts them."""
    result = []
    for changes in variants:
        what = ", ".join(f"{key}={show(value)}" for key, value in changes.items())
        config = flat(replace(base, f"variant {what}", **changes))
        result.append({key: config[key] for key in changes})
    return result
