"""Which setting mattered: how far apart a key's values are, and how much of all differences they explain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from core.config.setting import Value, show

# Values drawn from a range are all different, so the lower, middle and upper thirds are compared.
MOST_GROUPS = 6


@dataclass(frozen=True)
class Effect:
    """The effect of one key. Means in bits per byte, over the variants that were evaluated."""

    key: str
    means: tuple[tuple[str, float, int], ...]
    """(value or range as text, mean of the best bits per byte, number of variants), best first."""
    spread: float
    """Worst mean minus best mean."""
    share: float
    """The share of the variance between variants that the groups explain (eta squared), 0 to 1."""


class Rated(NamedTuple):
    """A run's values of the keys that are compared, and the best bits per byte that it reached."""

    changes: Mapping[str, Value]
    best: float


def effects(variants: Sequence[Rated]) -> list[Effect]:
    """The effect of every key that differs, largest first; [] with fewer than two evaluated variants.

    A variant that was ended early counts with its best so far, which doesn't flatter it: it was ended for
    being worse than the median.
    """
    rated = [one for one in variants if math.isfinite(one.best)]
    if len(rated) < 2:
        return []
    all_effects = [_effect(key, rated) for key in rated[0].changes]
    return sorted((one for one in all_effects if len(one.means) > 1), key=lambda one: -one.share)


def _effect(key: str, rated: Sequence[Rated]) -> Effect:
    groups = _groups([one.changes[key] for one in rated])
    values: dict[str, list[float]] = {}
    for group, one in zip(groups, rated):
        values.setdefault(group, []).append(one.best)
    overall = fmean(one.best for one in rated)
    total = sum((one.best - overall) ** 2 for one in rated)
    between = sum(len(group) * (fmean(group) - overall) ** 2 for group in values.values())
    means = sorted(
        ((name, fmean(group), len(group)) for name, group in values.items()), key=lambda row: row[1]
    )
    return Effect(key, tuple(means), means[-1][1] - means[0][1], between / total if total else 0.0)


def _groups(values: Sequence[Value]) -> list[str]:
    """For each value, the name of the group in which it is compared."""
    different = sorted({value for value in values if isinstance(value, (int, float))})
    if len(different) <= MOST_GROUPS or len(different) < len(set(values)):
        return [show(value) for value in values]
    thirds = [different[len(different) * part // 3 : len(different) * (part + 1) // 3] for part in range(3)]
    names = {value: f"{third[0]:g} to {third[-1]:g}" for third in thirds for value in third}
    return [names[value] for value in values]  # type: ignore[index]
