"""What a run reads, and its settings: the side of a wide screen, and the Details view.

The text comes first: how many tokens were seen, and how many suit a model of this size; how often the
text was read; and where in which file the rows of the batch are. Then the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from core.config.schema import SETTINGS
from core.config.setting import Setting, show
from core.runs.history import RunHistory
from mamba_tui import keys
from mamba_tui.backend.run_client import RunClient
from mamba_tui.panes.train.charts import MARK_GLYPHS
from mamba_tui.panes.train.layer_lines import layer_lines
from mamba_tui.widgets.numbers import compact
from mamba_tui.widgets.safe_text import clip, pad, visible
from mamba_tui.widgets.text_line import TextLine

TOKENS_PER_PARAMETER = 20
"""Tokens for each parameter that use a training budget best (Hoffmann et al., 2022, arXiv:2203.15556)."""
LABEL_CELLS, KEY_CELLS = 14, 22
MOST_FILES = 12
# The settings that say most about a run, even if they have their defaults.
ALWAYS = ("n_embd", "attention_type", "n_head", "block_size", "batch_size", "learning_rate", "dropout")
# Determined by the machine or the folder, or shown elsewhere.
NEVER = ("n_layer", "dataset_dir", "max_iters", "device", "threads", "auto")


GLYPH_WORDS = {
    MARK_GLYPHS["eval"]: "evaluation",
    MARK_GLYPHS["checkpoint"]: "checkpoint",
    MARK_GLYPHS["best"]: "checkpoint with the best validation loss",
    MARK_GLYPHS["pause"]: "paused",
    MARK_GLYPHS["go"]: "continued",
    MARK_GLYPHS["start"]: "resumed by a new trainer",
    "×": "a loss that is not a number",
}


def token_share(history: RunHistory) -> tuple[float, float] | None:
    """Tokens seen, and how many suit a model of this size; None before the first step."""
    if history.last_step is None or history.run is None or not history.run.parameters:
        return None
    return history.last_step.tokens, TOKENS_PER_PARAMETER * history.run.parameters


def details(run_client: RunClient, width: int) -> Content:
    """Both parts, in lines of at most `width` cells."""
    history = run_client.history
    if history is None or history.run is None:
        return Content.styled("No run yet.", "$muted")
    parts = [*_text(history, width), *layer_lines(history, width), *_configuration(history, width)]
    parts += _glyphs()
    return Content("\n").join(parts)


def _text(history: RunHistory, width: int) -> Iterator[Content]:
    yield Content.styled("Text", "bold $accent")
    tokens = token_share(history)
    step = history.last_step
    if tokens is not None and step is not None:
        seen, wanted = tokens
        parameters = history.run.parameters if history.run else 0
        yield _row("tokens", f"{compact(seen)}, {seen / wanted:.0%} of {compact(wanted)}")
        yield _row("", f"{TOKENS_PER_PARAMETER} for each of {compact(parameters)} parameters", "$muted")
        yield _row("passes", f"{step.epoch:.2f} over the text")
    if history.reading is not None and history.reading.rows:
        yield from _reading(history.reading.rows, width)


def _reading(rows: tuple[tuple[str, float], ...], width: int) -> Iterator[Content]:
    """Each file that contains batch rows, with a dot for each row on a line from start to end."""
    files: dict[str, list[float]] = {}
    for name, share in rows:
        files.setdefault(name, []).append(share)
    yield _row("batch rows", f"{len(rows)} in {len(files)} file{'s' if len(files) > 1 else ''}, each ● a row")
    name_cells = max(12, min(28, width // 2))
    line_cells = max(6, min(40, width - name_cells - 2))
    for name, shares in list(files.items())[:MOST_FILES]:
        columns = {min(int(share * line_cells), line_cells - 1) for share in shares}
        line = "".join("●" if column in columns else "╌" for column in range(line_cells))
        yield Content.assemble((f" {pad(visible(name), name_cells)}", ""), (line, "$accent"))
    if len(files) > MOST_FILES:
        yield Content.styled(f" and {len(files) - MOST_FILES} more files", "$muted")


def _configuration(history: RunHistory, width: int) -> Iterator[Content]:
    run = history.run
    assert run is not None
    yield Content("")
    yield Content.assemble(("Configuration", "bold $accent"), ("  ● differs from the default", "$muted"))
    for item in SETTINGS.values():
        value = run.config.get(item.key)
        if value is None or item.key in NEVER:
            continue
        changed = _differs(item, value)
        if changed or item.key in ALWAYS:
            words = clip(visible(_in_words(item, value)), max(8, width - KEY_CELLS - 2))
            mark = ("● ", "$accent") if changed else ("  ", "")
            yield Content.assemble(mark, (f"{pad(item.key, KEY_CELLS)}", "$muted"), words)


def _glyphs() -> Iterator[Content]:
    """What the glyphs on the charts' x axes stand for."""
    yield Content("")
    yield Content.styled("On the x axis of the charts", "bold $accent")
    for glyph, words in GLYPH_WORDS.items():
        yield Content.assemble((f" {glyph}  ", "bold"), (words, "$muted"))


def _differs(item: Setting, value: object) -> bool:
    if item.per_layer:
        return False  # every model has its own shape
    return value != (list(item.default) if isinstance(item.default, tuple) else item.default)


def _in_words(item: Setting, value: object) -> str:
    if isinstance(value, list) and len(set(map(str, value))) == 1 and len(value) > 1:
        return f"{len(value)} x {show(value[0])}"
    return show(value)


def _row(label: str, text: str, style: str = "") -> Content:
    return Content.assemble((pad(f" {label}", LABEL_CELLS), "$muted"), (text, style))


class DetailsView(VerticalScroll, can_focus=True):
    """The details of the followed run."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("details")

    DEFAULT_CSS = """
    DetailsView { height: 1fr; padding: 0 1; }
    DetailsView TextLine { height: auto; }
    """

    def compose(self) -> ComposeResult:
        """One text."""
        yield TextLine()

    def show(self, run_client: RunClient) -> None:
        """Show what is known now."""
        content = details(run_client, max(30, self.size.width - 2))
        self.query_one(TextLine).show(content, layout=True)
