"""The report of `mamba-tui eval` as tables: for people on a terminal, tab-separated elsewhere."""

from __future__ import annotations

import math
import sys
from typing import Any

from mamba_tui.cli.tables import Row, show_table
from mamba_tui.widgets.numbers import loss
from mamba_tui.widgets.safe_text import visible

MOST_DOCUMENTS = 40
UNITS = {
    "nats_per_token": "nats per token",
    "nats_per_character": "nats per character",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
}
SIDES = {"train": "trained on", "validation": "validation", "tail": "trained on except its end", "": "new"}


def show_report(report: dict[str, Any], *, every: bool) -> None:
    """Print a report: documents, the whole text, loss by position, and the value of the carried state."""
    documents = report["documents"]
    shown = documents if every or not sys.stdout.isatty() else documents[:MOST_DOCUMENTS]
    window = f"windows of {report['block_size']:,}"
    show_table(
        ("document", "tokens", "bits/byte", "nats/token", "±", window, "gain", "in the run"),
        [_document(one) for one in shown],
        f"and {report['document_count'] - len(shown):,} more documents; --all lists them"
        if len(shown) < report["document_count"]
        else "",
    )
    print()
    show_table(
        (_amount(report), "streamed", "±", window, "±"),
        [_unit(report, key, words) for key, words in UNITS.items()],
    )
    print()
    show_table(
        ("position in the document", "tokens", "streamed", window, "gain", "±"),
        [_position(one) for one in report["positions"]],
    )
    print()
    print(memory_sentence(report))


def memory_sentence(report: dict[str, Any]) -> str:
    """Whether carrying the state helps, if the text is long enough to tell."""
    gain, error = report["gain"], report["gain_standard_error"]
    if report["tokens"] <= report["block_size"] or math.isnan(error):
        return "Too little text to tell whether carrying the state helps."
    size = f"{abs(gain):.4f} ± {error:.4f} nats per token"
    if abs(gain) <= 2 * error:
        return f"Carrying the state makes no measurable difference on this text ({gain:+.4f} ± {error:.4f})."
    return f"Carrying the state {'helps' if gain > 0 else 'hurts'}: {size} against windows."


def _document(one: dict[str, Any]) -> Row:
    streamed = one["streamed"]
    return (
        visible(one["name"]),
        f"{one['tokens']:,}",
        loss(streamed["bits_per_byte"]),
        loss(streamed["nats_per_token"]),
        _error(streamed["standard_error"]),
        loss(one["windows"]["nats_per_token"]),
        _gain(one["gain"]),
        SIDES.get(one["side"], one["side"]),
    )


def _amount(report: dict[str, Any]) -> str:
    count = report["document_count"]
    return f"{count:,} document{'' if count == 1 else 's'}, {report['tokens']:,} tokens"


def _unit(report: dict[str, Any], key: str, words: str) -> Row:
    """A loss in one unit, with its standard error in the same unit."""
    row = [words]
    for way in ("streamed", "windows"):
        values = report[way]
        scale = (
            values[key]
            if key == "perplexity"
            else values[key] / values["nats_per_token"]
            if values["nats_per_token"]
            else math.nan
        )
        row += [loss(values[key]), _error(values["standard_error"] * scale)]
    return row


def _position(one: dict[str, Any]) -> Row:
    return (
        f"{one['from']:,} to {one['to'] - 1:,}",
        f"{one['tokens']:,}",
        loss(one["streamed"]),
        loss(one["windows"]),
        _gain(one["gain"]),
        _error(one["gain_standard_error"]),
    )


def _error(value: float) -> str:
    return loss(value) if math.isfinite(value) else "-"


def _gain(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "-"
