"""The views of Layers as lines: what each layer would say, its memory, and the table of layers.

Every function takes the events of `core/inspection/service.py` and gives lines of styled pieces; a style
is the name of one of `Picture`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mamba_tui.panes.layers.words import KINDS, columns, figure, layer_name, share, word
from mamba_tui.widgets.safe_text import pad
from mamba_tui.widgets.sparkline import sparkline

Line = list[tuple[str, str]]
Shape = Sequence[dict[str, Any]]
NAME_CELLS = 12


def lens_lines(lens: dict[str, Any], shape: Shape, layer: int, width: int) -> tuple[list[Line], int]:
    """What each layer would say after the token, and which line is that of the chosen layer."""
    following = lens["following"]
    coming = f" comes {word(following['text'])}" if following else ", the last of the text"
    lines: list[Line] = [[(f"after {word(lens['text'])}{coming}", "strong"), (_decided(lens), "muted")]]
    lines.append([(pad("layer", NAME_CELLS) + pad("rank", 7, right=True) + "  would say", "muted")])
    for one in lens["layers"]:
        rank = "-" if one["rank"] is None else f"{one['rank'] + 1:,}"
        chosen = "chosen" if one["layer"] == layer else ""
        line: Line = [
            (pad(layer_name(one["layer"], shape), NAME_CELLS), chosen),
            (pad(rank, 7, right=True) + "  ", "good" if one["rank"] == 0 else "muted"),
        ]
        room = width - NAME_CELLS - 9
        for said in one["top"]:
            text = f"{word(said['text'])} {share(said['probability'])}  "
            if len(text) > room:
                break
            room -= len(text)
            right = following is not None and said["id"] == following["id"]
            line.append((text, "good" if right else ""))
        lines.append(line)
    return lines, 3 + layer


def _decided(lens: dict[str, Any]) -> str:
    first, decided = lens["answer_from"], lens["decided_from"]
    words = (
        ""
        if lens["following"] is None
        else "   never first"
        if first is None
        else f"   first at {_at(first)}"
    )
    return f"{words}   decided from {_at(decided)}"


def _at(layer: int) -> str:
    return "the embedding" if layer < 0 else f"layer {layer}"


def memory_lines(memory: dict[str, Any], shape: Shape, width: int, height: int, token: int) -> list[Line]:
    """How long a Mamba layer remembers, as a distribution, around starts, and its state over the text."""
    life, layer = memory["half_life"], memory["layer"]
    spread = f", {figure(life['low'])} to {figure(life['high'])} for 80 % of {memory['states']:,} states"
    lines: list[Line] = [
        [
            (f"layer {layer_name(layer, shape)}: half-life ", "strong"),
            (f"{figure(life['median'])} tokens", "good"),
            (spread, "muted"),
        ]
    ]
    counts = memory["histogram"]
    used = [index for index, count in enumerate(counts) if count] or [0]
    first, last = used[0], used[-1]
    cells = max(3, min(8, width // (last - first + 1)))
    rows = max(1, min(8, height - 6))
    lines += [[(row, "bar")] for row in columns(counts[first : last + 1], rows, cells)]
    names = "".join(pad(_power(index), cells) for index in range(first, last + 1))
    lines.append([(names, "muted"), ("tokens", "muted") if len(names) + 6 < width else ("", "")])
    room = max(10, width - 44)
    for what, around in (("paragraph", memory["paragraphs"]), ("document", memory["documents"])):
        if not around["offsets"]:
            lines.append([(f"no {what} begins in this text", "muted")])
            continue
        at = dict(zip(around["offsets"], around["half_life"], strict=False))
        lines.append([
            (pad(f"at a {what}", 15), ""),
            (pad(f"{figure(at.get(0))}, elsewhere {figure(around['elsewhere'])}", 24), "good"),
            (sparkline(around["half_life"], room), "bar"),
            (f" {around['offsets'][0]:+d} to {around['offsets'][-1]:+d}", "muted"),
        ])  # fmt: skip
    norms = memory["state_norm"]
    lines.append([
        (pad("state norm", 15), ""),
        (pad(f"{figure(norms[token])} here", 24), "good"),
        (sparkline(norms, width - 40), "bar"),
    ])  # fmt: skip
    return lines


def _power(index: int) -> str:
    return "<1" if index == 0 else f"{1 << (index - 1)}" if index < 11 else f"{1 << (index - 11)}k"


def window_lines(figures: dict[str, Any] | None, layer: int, window: int, width: int) -> list[Line]:
    """What stands in the place of a memory for an attention layer: its window and where its heads look."""
    lines: list[Line] = [
        [(f"layer {layer} attention: it sees its last {window:,} tokens and keeps nothing else", "strong")]
    ]
    if figures is None:
        return lines
    lines.append(
        [(pad("head", 6) + pad("mean distance", 15, right=True) + pad("entropy", 10, right=True), "muted")]
    )
    far = max([*figures["distance"], 1e-9])
    for head, (back, nats) in enumerate(zip(figures["distance"], figures["entropy"], strict=False)):
        bar = "█" * round((width - 34) * back / far)
        lines.append([
            (pad(str(head), 6), ""),
            (pad(figure(back), 15, right=True) + pad(figure(nats), 10, right=True) + "  ", ""),
            (bar, "bar"),
        ])  # fmt: skip
    return lines


COLUMNS = (
    ("adds", 7), ("mixer", 7), ("mlp", 7), ("dead", 6), ("active", 7), ("rank", 6), ("90 %", 6), ("lens", 7)
)  # fmt: skip


def layer_lines(figures: dict[str, Any], layer: int, width: int) -> tuple[list[Line], int]:
    """One layer a line: what it adds, dead units, directions used; and which line is the chosen layer's."""
    head = pad("layer", NAME_CELLS) + pad("width", 6, right=True)
    head += "".join(pad(title, cells, right=True) for title, cells in COLUMNS)
    lines: list[Line] = [[(head, "muted")]]
    layers = figures["layers"]
    most = max(
        [*(one["contribution"]["layer"] for one in layers if _is_number(one["contribution"]["layer"])), 1e-9]
    )
    room = width - len(head) - 2
    for one in layers:
        adds = one["contribution"]
        values = (
            figure(adds["layer"]), figure(adds["mixer"]), figure(adds["mlp"]), f"{one['dead_units']:,}",
            f"{one['active_share']:.0%}", figure(one["effective_rank"]), f"{one['directions_90']:,}",
            figure(figures["lens_loss"][one["layer"] + 1]),
        )  # fmt: skip
        name = f"{one['layer']} {KINDS.get(one['kind'], one['kind'])}"
        row = pad(f"{one['width']:,}", 6, right=True)
        row += "".join(
            pad(value, cells, right=True) for value, (_, cells) in zip(values, COLUMNS, strict=True)
        )
        line: Line = [(pad(name, NAME_CELLS), "chosen" if one["layer"] == layer else ""), (row, "")]
        if room > 4 and _is_number(adds["layer"]):
            line.append(("  " + "█" * max(1, round(room * adds["layer"] / most)), "bar"))
        lines.append(line)
    waist = figures["waist"]
    lines.append([("", "")])
    used = f"{figure(waist['effective_rank'])} of {waist['width']:,} directions"
    lines.append([
        (f"waist, layer {waist['layer']}: {used}, "
         f"{waist['directions_90']:,} carry 90 %  ", "strong"),
        (sparkline(waist["singular_values"], max(8, width - 60)), "bar"),
    ])  # fmt: skip
    lines.append([("adds, mixer, mlp: what is added over the stream; lens: loss of its own answer", "muted")])
    return lines, 1 + layer


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def map_head(picture: dict[str, Any], shape: Shape) -> Line:
    """What a heat map shows."""
    layer, group = picture["layer"], picture["group"]
    kind, groups = str(shape[layer]["group"]), int(shape[layer]["groups"])
    which = f"mean of {groups:,} {kind}s" if group < 0 else f"{kind} {group} of {groups:,}"
    return [
        (f"layer {layer_name(layer, shape)}, {which}", "strong"),
        (
            f"   {figure(picture['distance'])} tokens back, entropy {figure(picture['entropy'])} nats",
            "muted",
        ),
    ]
