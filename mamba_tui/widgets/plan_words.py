"""A plan as text, the same everywhere: before Start, on the command line, and when a run begins."""

from __future__ import annotations

import math

from mamba_tui.widgets.numbers import compact, duration


def plan_words(
    tokens: int, parameters: int, passes: float, seconds: float, *, exact: bool = True, measured: bool = True
) -> str:
    """Such as: 3.0 M tokens, 20 M parameters, 12 passes, about 4 minutes."""
    about = "" if exact else "about "
    times = f"{passes:,.0f} passes" if passes >= 9.95 else f"{passes:.1f} passes"
    guess = "" if measured else " (a guess: nothing similar was measured here)"
    return (
        f"{about}{compact(tokens)} tokens, {compact(parameters)} parameters, {times}, "
        f"about {rough_time(seconds)}{guess}"
    )


def plan_lines(
    tokens: int,
    parameters: int,
    passes: float,
    seconds: float,
    low: float,
    high: float,
    steps: int,
    expected: tuple[float, float] | None,
    hint: str,
    *,
    exact: bool = True,
) -> list[str]:
    """The whole plan: size and time, the loss to expect where it is known, and a hint if there is one."""
    words = plan_words(tokens, parameters, passes, seconds, exact=exact)
    lines = [f"{words} ({time_range(low, high)}), {steps:,} steps", expected_words(expected), hint]
    return [line for line in lines if line]


def rough_time(seconds: float) -> str:
    """A duration as people say it: 40 seconds, 4 minutes, 1.5 hours; `-` if unknown."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) != 1 else ''}"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    if seconds < 36 * 3600:
        hours = seconds / 3600
        return f"{hours:.1f} hours" if hours < 9.95 else f"{hours:.0f} hours"
    return duration(seconds)


def time_range(low: float, high: float) -> str:
    """Such as: 3 to 5 minutes."""
    if rough_time(low) == rough_time(high):
        return rough_time(low)
    (first, _, unit), (last, _, other) = rough_time(low).partition(" "), rough_time(high).partition(" ")
    if unit == other:
        return f"{first} to {last} {unit}".rstrip()
    return f"{rough_time(low)} to {rough_time(high)}"


def expected_words(expected: tuple[float, float] | None) -> str:
    """The expected loss, "" if unknown."""
    return (
        ""
        if expected is None
        else f"expected validation about {expected[0]:.2f} to {expected[1]:.2f} nats/character"
    )
