"""How each layer of a run learns: one line a layer, with a curve of its gradient over the evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from textual.content import Content

from core.runs.history import RunHistory
from mamba_tui.widgets.numbers import compact, rate
from mamba_tui.widgets.safe_text import pad, visible
from mamba_tui.widgets.sparkline import sparkline

NAME_CELLS, NUMBER_CELLS = 12, 9
KINDS = {"standard": "attention", "mamba": "mamba", "mamba2": "mamba-2"}


def layer_lines(history: RunHistory, width: int) -> Iterator[Content]:
    """Nothing for a run of which no layers are known, else a head and a line for each layer."""
    events = history.layers
    if not events:
        return
    newest = events[-1]
    numbers = 3 if width >= NAME_CELLS + 3 * NUMBER_CELLS + 8 else 1
    titles = ("gradient", "update", "size")[:numbers]
    room = max(6, width - NAME_CELLS - numbers * NUMBER_CELLS - 2)
    yield Content("")
    yield Content.styled("Layers, at each evaluation", "bold $accent")
    head = pad("", NAME_CELLS) + "".join(pad(title, NUMBER_CELLS, right=True) for title in titles)
    yield Content.styled(head, "$muted")
    kinds = history.run.config.get("attention_type", ()) if history.run is not None else ()
    for layer in range(len(newest.gradient_norm)):
        values = [_number(series, layer) for series in (newest.gradient_norm, newest.update_ratio)]
        shown = (compact(values[0]), rate(values[1]), compact(_number(newest.activation, layer)))[:numbers]
        curve = [_number(event.gradient_norm, layer) for event in events]
        yield Content.assemble(
            pad(f"{layer} {_kind(kinds, layer)}", NAME_CELLS),
            "".join(pad(value, NUMBER_CELLS, right=True) for value in shown),
            (f"  {sparkline(curve, room)}", "$series-0"),
        )


def _kind(kinds: object, layer: int) -> str:
    if not isinstance(kinds, (list, tuple)) or layer >= len(kinds):
        return ""
    return visible(KINDS.get(str(kinds[layer]), str(kinds[layer])))


def _number(values: Sequence[float], layer: int) -> float | None:
    return values[layer] if layer < len(values) else None
