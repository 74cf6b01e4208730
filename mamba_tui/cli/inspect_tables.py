"""The report of `mamba-tui inspect` as tables: for people on a terminal, tab-separated elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mamba_tui.cli.tables import Row, show_table
from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.safe_text import clip, visible

KINDS = {"standard": "attention", "mamba": "mamba", "mamba2": "mamba-2"}
MOST_HEADS = 64


def show_layers(report: dict[str, Any]) -> None:
    """Print a report: the layers, what they would predict, memory around starts, one layer's heads."""
    text, layers, waist = report["text"], report["layers"], report["waist"]
    print(
        f"{visible(clip(text['name'], 80))}: {len(text['tokens']):,} tokens, {text['documents']:,} "
        f"document{'' if text['documents'] == 1 else 's'}, {len(text['paragraphs']):,} new paragraphs"
    )
    print()
    show_table(
        ("layer", "type", "width", "adds", "mixer", "mlp", "dead units", "active", "rank", "90 %", "lens"),
        [layer_row(one, report["lens_loss"]) for one in layers],
    )
    print("\nadds, mixer, mlp: norm of what is added over the stream's; rank: effective directions of the")
    print("stream, and how many carry 90 % of its variance; lens: loss in nats per token of its own answer")
    print(
        f"the waist, layer {waist['layer']}, uses {number(waist['effective_rank'])} of {waist['width']:,} "
        f"directions; {waist['directions_90']:,} carry 90 % of the variance\n"
    )
    memory = [one["memory"] for one in layers if "memory" in one]
    if memory:
        show_table(
            ("layer", "half-life", "10 % below", "10 % above", "at a paragraph", "elsewhere",
             "at a document", "state norm, last"),
            [memory_row(one) for one in memory],
        )  # fmt: skip
        print("half-life: tokens until half of a state remains, the median of all states\n")
    heads = [one for one in layers if "entropy" in one]
    if heads:
        rows = [
            (str(one["layer"]), str(head), number(nats), number(math.exp(nats)), number(back))
            for one in heads
            for head, (nats, back) in enumerate(zip(one["entropy"], one["distance"]))
        ]
        show_table(
            ("layer", "head", "entropy, nats", "as many tokens", "mean distance"),
            rows[:MOST_HEADS],
            f"and {len(rows) - MOST_HEADS:,} more heads; --json has all" if len(rows) > MOST_HEADS else "",
        )
        print()
    show_answers(report["answers"])


def layer_row(one: dict[str, Any], lens_loss: Sequence[float]) -> Row:
    """One layer's figures as text."""
    adds = one["contribution"]
    return (
        str(one["layer"]),
        KINDS.get(one["kind"], one["kind"]),
        f"{one['width']:,}",
        *(number(adds[name]) for name in ("layer", "mixer", "mlp")),
        f"{one['dead_units']:,} of {one['units']:,}",
        f"{one['active_share']:.0%}",
        number(one["effective_rank"]),
        f"{one['directions_90']:,}",
        number(lens_loss[one["layer"] + 1]),
    )


def memory_row(one: dict[str, Any]) -> Row:
    """A Mamba layer's memory as text."""
    life = one["half_life"]
    return (
        str(one["layer"]),
        *(number(life[name]) for name in ("median", "low", "high")),
        _at_start(one["paragraphs"]),
        number(one["paragraphs"]["elsewhere"]),
        _at_start(one["documents"]),
        number(one["state_norm"][-1]),
    )


def _at_start(around: dict[str, Any]) -> str:
    return number(dict(zip(around["offsets"], around["half_life"])).get(0))


def show_answers(answers: dict[str, Any]) -> None:
    """What each layer would predict after a token."""
    following = answers["following"]
    print(f"after token {answers['token']:,} {word(answers['text'])}", end="")
    print(f" comes {word(following['text'])}" if following else ", the last")
    show_table(
        ("layer", "would predict", "rank", "probability"),
        [
            (
                "embedding" if one["layer"] < 0 else str(one["layer"]),
                "  ".join(f"{word(said['text'])} {_share(said['probability'])}" for said in one["top"]),
                "-" if one["rank"] is None else f"{one['rank'] + 1:,}",
                "-" if one["probability"] is None else _share(one["probability"]),
            )
            for one in answers["layers"]
        ],
    )
    print(answers_sentence(answers))


def answers_sentence(answers: dict[str, Any]) -> str:
    """Where the answer first appears."""
    decided = _layer_name(answers["decided_from"])
    sentence = f"The model's prediction is decided from {decided} on"
    if answers["following"] is None:
        return f"{sentence}."
    if answers["answer_from"] is None:
        return f"{sentence}; no layer predicts the token that follows."
    return f"{sentence}; the token that follows is first predicted by {_layer_name(answers['answer_from'])}."


def _layer_name(layer: int) -> str:
    return "the embedding" if layer < 0 else f"layer {layer}"


def _share(value: float | str) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def word(text: str) -> str:
    """A token in quotes, safe to print."""
    return repr(visible(clip(text, 20)))


def number(value: float | str | None) -> str:
    """Three digits; numbers that aren't finite by their names."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else compact(value)
