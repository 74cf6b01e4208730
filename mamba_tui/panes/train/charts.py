"""From a run's history to the charts of the Train pane."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.runs.history import Mark, RunHistory
from core.runs.table import Floats
from mamba_tui.widgets.chart.frame import Line, Marker
from mamba_tui.widgets.chart.line_chart import LineChart

SMOOTHING = (0, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
AXES = ("number", "tokens", "duration", "clock")
AXIS_NAMES = {
    "number": "steps",
    "tokens": "tokens",
    "duration": "time since the start",
    "clock": "time of day",
}
AXIS_UNITS = {"number": "steps", "tokens": "tokens", "duration": "time", "clock": "clock"}
MARK_GLYPHS = {"checkpoint": "▲", "best": "★", "pause": "‖", "go": "▸", "start": "↻", "eval": "·"}
FREQUENT = (MARK_GLYPHS["checkpoint"], MARK_GLYPHS["eval"])
MARK_COLORS = {
    "checkpoint": "text-muted",
    "best": "accent",
    "pause": "warning",
    "go": "success",
    "start": "primary",
    "eval": "text-muted",
}


@dataclass(frozen=True)
class Kind:
    """One chart: its name, title and the columns it shows."""

    id: str
    title: str
    column: str
    unit: str = ""
    color: int = 0
    least: tuple[float, float] | None = None


KINDS = (
    Kind("loss", "Loss", "loss"),
    Kind("gradient", "Gradient norm", "gradient_norm", color=3),
    Kind("speed", "Tokens/s", "tokens_per_second", color=2),
    Kind("rate", "Learning rate", "learning_rate", color=5),
    Kind("memory", "Memory, GB", "device_memory", " GB", color=6),
    Kind("usage", "Utilization, %", "device_utilization", " %", color=4, least=(0, 100)),
    Kind("wait", "Data wait, %", "data_wait", " %", color=7),
)
# The run's quantities, and its device's: one row each if there is room for two.
ROWS = {"learning": ("gradient", "speed", "rate"), "device": ("memory", "usage", "wait")}
SERIES = 8
"""Colors that a theme has for series."""
SCALES = {"device_memory": 2.0**-30, "data_wait": 100.0, "device_utilization": 100.0}


def chart_of(kind: Kind) -> LineChart:
    """The chart of one column. A gradient norm has spikes that would flatten everything else."""
    chart = LineChart(kind.title, unit=kind.unit, empty="-", least=kind.least, id=kind.id)
    chart.names_x = False
    chart.outliers_by_default = kind.id != "gradient"
    chart.set_reactive(LineChart.ignore_outliers, not chart.outliers_by_default)
    return chart


@dataclass(frozen=True)
class ChartOptions:
    """What is chosen for all charts."""

    axis: str = "number"
    smoothing: int = 2
    bits: bool = False

    @property
    def width(self) -> int:
        """How many steps back the smoothing reaches."""
        return SMOOTHING[min(max(self.smoothing, 0), len(SMOOTHING) - 1)]


class Colors:
    """Series colors of the current theme."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def series(self, index: int) -> str:
        """The color of the i-th series."""
        return self._variables.get(f"series-{index}", "#808080")[:7]

    def behind(self, index: int) -> str:
        """The color of the i-th run drawn behind: starts over after the last, never the run's own."""
        return self.series(2 + index % (SERIES - 2))

    @property
    def faint(self) -> str:
        """The color of ranges behind a line."""
        return self._variables.get("series-faint", "#404040")[:7]

    def named(self, name: str) -> str:
        """A theme variable as a color that Rich understands."""
        value = self._variables.get(name, "")
        return value[:7] if value.startswith("#") else "#888888"


def bits_factor(history: RunHistory, *, training: bool = False) -> float:
    """Bits per byte for one nat per token, from the latest evaluation; NaN before the first."""
    event = history.last_evaluation
    if event is None:
        return math.nan
    loss = event.train_loss if training else event.validation_loss
    bits = event.train_bits_per_byte if training else event.bits_per_byte
    return bits / loss if loss else math.nan


def loss_lines(
    history: RunHistory, options: ChartOptions, colors: Colors, name: str = "training"
) -> list[Line]:
    """Training loss, smoothed, with its range behind it, and validation loss, the calmer line, on top."""
    table, evaluations = history.steps, history.evaluations
    factor = bits_factor(history, training=True) if options.bits else 1.0
    factor = factor if math.isfinite(factor) else 1.0
    lines = []
    if table.count:
        lines.append(
            Line(
                name,
                history.x_values(table, options.axis),
                history.loss.values(options.width) * factor,
                colors.series(0),
                table.column("loss_min") * factor,
                table.column("loss_max") * factor,
                colors.faint,
            )
        )
    if evaluations.count:
        column = "bits_per_byte" if options.bits else "validation_loss"
        lines.append(
            Line(
                "validation",
                history.x_values(evaluations, options.axis),
                evaluations.column(column),
                colors.series(1),
            )
        )
    return lines


def overlay_line(name: str, history: RunHistory, options: ChartOptions, color: str) -> list[Line]:
    """Another run's training loss, smoothed the same way, and its validation loss, which has the name."""
    own = loss_lines(history, options, Colors({}))
    return [
        dataclasses.replace(
            line,
            name=name if line is own[-1] else "",
            color=color,
            low=None,
            high=None,
        )
        for line in own
    ]


def single_line(history: RunHistory, kind: Kind, options: ChartOptions, colors: Colors) -> list[Line]:
    """One column of the steps."""
    table = history.steps
    if not table.count:
        return []
    values: Floats = table.column(kind.column)
    if not np.isfinite(values).any():
        return []
    scale = SCALES.get(kind.column, 1.0)
    name = "" if kind.id != "loss" else "training"
    return [
        Line(
            name or " ",
            history.x_values(table, options.axis),
            values * scale if scale != 1 else values,
            colors.series(kind.color),
            digits=3,
        )
    ]


def markers(history: RunHistory, options: ChartOptions, colors: Colors) -> list[Marker]:
    """Evaluations, checkpoints, pauses and new starts on the x axis, rarer ones on top."""
    all_markers = []
    evaluations = history.evaluations
    for x in history.x_values(evaluations, options.axis)[-2000:].tolist():
        all_markers.append(Marker(x, MARK_GLYPHS["eval"], colors.named(MARK_COLORS["eval"]), "evaluation"))
    order = ("checkpoint", "pause", "go", "start", "best")
    for kind in order:
        marks = [mark for mark in history.marks if mark.kind == kind]
        # Only the latest best checkpoint is still the best.
        for position, mark in enumerate(marks):
            shown = "checkpoint" if kind == "best" and position < len(marks) - 1 else kind
            all_markers.append(
                Marker(
                    mark_x(history, mark, options.axis),
                    MARK_GLYPHS[shown],
                    colors.named(MARK_COLORS[shown]),
                    mark.label,
                )
            )
    return all_markers


def mark_x(history: RunHistory, mark: Mark, axis: str) -> float:
    """The position of a mark on an axis."""
    if axis == "duration":
        return mark.time - history.started
    if axis == "clock":
        return mark.time
    if axis == "tokens":
        return float(history.tokens_at(np.array([mark.step]))[0])
    return mark.step


def loss_title(options: ChartOptions) -> str:
    """Title of the loss chart: unit and smoothing."""
    unit = "Loss, bits/byte" if options.bits else "Loss, nats/token"
    return unit if not options.width else f"{unit}, smoothed over {options.width} steps"


def csv_text(history: RunHistory) -> str:
    """The rows of both tables as CSV: steps, then evaluations."""
    parts = []
    for table in (history.steps, history.evaluations):
        parts.append(",".join(table.columns))
        for row in zip(*(table.column(name).tolist() for name in table.columns)):
            parts.append(",".join("" if math.isnan(value) else f"{value:.10g}" for value in row))
        parts.append("")
    return "\n".join(parts)
