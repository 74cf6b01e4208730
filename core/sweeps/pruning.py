"""Which variants are not worth their time: the median stopping rule.

Golovin et al., "Google Vizier", 2017, section 3.2.2: a trial is stopped at a step when its best value so
far is worse than the median of what the others had at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from core.sweeps.progress import Progress

# With fewer variants to compare with, the result would be chance.
FEWEST_OTHERS = 3
# The first evaluations see the warm-up, and say little.
SMALLEST_SHARE = 0.2


def poor(one: Progress, others: Sequence[Progress]) -> bool:
    """True if a variant should be ended: its best so far is above the others' median.

    They are compared at its latest evaluation, with the best that each other variant had reached at that
    step. No variant is ended before a fifth of its steps, or with fewer than three to compare with.
    """
    if not one.curve:
        return False
    step = max(one.curve)
    if step < SMALLEST_SHARE * one.max_iters:
        return False
    reached = [
        best_until(other, step)
        for other in others
        if other is not one and max(other.curve, default=-1) >= step
    ]
    return len(reached) >= FEWEST_OTHERS and best_until(one, step) > median(reached)


def best_until(one: Progress, step: int) -> float:
    """The lowest bits per byte that a variant had reached at a step; infinity before any."""
    return min((value for at, value in one.curve.items() if at <= step), default=math.inf)
