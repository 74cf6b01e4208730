"""The cost of a sweep, before it starts."""

from __future__ import annotations

import math

from core.config.changes import replace
from core.config.schema import RunConfig
from core.sweeps.axes import Changes
from core.sweeps.preparing import SweepOptions, expand
from mamba_tui.backend.run_estimate import Survey, estimate
from mamba_tui.widgets.plan_words import time_range

# This many variants, evenly chosen, represent all of them.
MOST_ESTIMATED = 12


def sweep_size(config: RunConfig, options: SweepOptions, *, known: Survey) -> str:
    """How many variants there are, how many train at once, and how long that takes. Raises UserError."""
    changes, at_once = expand(config, options)
    words = [f"{len(changes):,} variant{'' if len(changes) == 1 else 's'}", f"{at_once} at once"]
    low, high = sweep_seconds(config, changes, at_once, known)
    if math.isfinite(high):
        words.append(f"about {time_range(low, high)} in all")
    sentence = ", ".join(words)
    return f"{sentence}; less where variants end early." if options.prune else f"{sentence}."


def sweep_seconds(
    config: RunConfig, changes: list[Changes], at_once: int, known: Survey
) -> tuple[float, float]:
    """The shortest and longest time of a sweep, in seconds; infinite if unknown.

    Variants that train in parallel share the machine. If that slows none of them, the sweep takes its share
    of their total time; if the machine was busy already, it takes all of it.
    """
    chosen = changes[:: max(1, math.ceil(len(changes) / MOST_ESTIMATED))]
    durations = [estimate(replace(config, "sweep", **one), known).duration for one in chosen]
    if not all(durations):
        return math.inf, math.inf
    each = len(changes) / len(chosen)
    low = sum(one.low for one in durations if one is not None) * each
    high = sum(one.high for one in durations if one is not None) * each
    return low / at_once, high
