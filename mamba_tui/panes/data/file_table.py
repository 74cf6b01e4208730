"""The table of text files, and the view of a text as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import BindingType
from textual.color import Color

from core.data.corpus import FileReport
from mamba_tui import data_wording, keys, themes
from mamba_tui.widgets.numbers import loss
from mamba_tui.widgets.rows import Rows
from mamba_tui.widgets.safe_text import clip, pad
from mamba_tui.widgets.token_view import Token, TokenView

# title, cells, whether it may be left out of a narrow table
COLUMNS = (("encoding", 11, True), ("docs", 7, True), ("tokens", 13, False), ("B/token", 8, True))
LOSS_COLUMN = ("bits/B", 8, False)
SPLIT_CELLS = 14
NARROW = 64


@dataclass(frozen=True)
class TextFile:
    """A file of the corpus as the table shows it."""

    name: str
    split: str
    split_name: str
    encoding: str
    bytes: int
    documents: int
    tokens: int
    validation_tokens: int
    longest_line: int
    notes: Sequence[str]

    @classmethod
    def of(cls, file: FileReport) -> TextFile:
        """A report's texts for the table."""
        return cls(
            name=file.name,
            split=file.split,
            split_name=data_wording.split_name(file),
            encoding=data_wording.encoding_name(file),
            bytes=file.bytes,
            documents=file.documents,
            tokens=file.tokens,
            validation_tokens=file.validation_tokens,
            longest_line=file.longest_line,
            notes=data_wording.notes(file),
        )


def losses_words(run: str, step: int, losses: Mapping[str, float]) -> str:
    """Whose losses the table shows, and the best and the worst of them."""
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    words = f"validation loss of {run} at step {step:,}: {clip(best, 40)} {loss(losses[best])}"
    if best != worst:
        words += f" is the lowest, {clip(worst, 40)} {loss(losses[worst])} the highest"
    return f"{words} bits per byte"


class FileTable(Rows):
    """One file per row: name, encoding, documents, tokens, bytes per token, split."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.files: list[TextFile] = []
        self.losses: Mapping[str, float] = {}

    @property
    def row_count(self) -> int:
        """All files, including those that weren't read."""
        return len(self.files)

    @property
    def current(self) -> TextFile | None:
        """The file under the cursor."""
        return self.files[self.cursor] if 0 <= self.cursor < len(self.files) else None

    def show(self, files: list[TextFile]) -> None:
        """Show other files; the cursor stays on the same one."""
        name = self.current.name if self.current else ""
        self.files = files
        at = next((index for index, file in enumerate(files) if file.name == name), 0)
        self.set_reactive(Rows.cursor, at)
        self.rows_changed()

    def show_losses(self, losses: Mapping[str, float]) -> None:
        """Show the validation losses of files, in bits per byte by name; none for no column."""
        self.losses = losses
        self.rows_changed()

    def header_segments(self, width: int) -> list[Segment]:
        """Titles of the columns that fit."""
        style = self.style_of("header")
        columns = self._columns(width)
        titles = [pad(title, cells, right=title != "encoding") for title, cells in columns]
        return [Segment(pad(" file", self._name_cells(width)) + "".join(titles) + "  split", style)]

    def _columns(self, width: int) -> list[tuple[str, int]]:
        columns = (*COLUMNS, LOSS_COLUMN) if self.losses else COLUMNS
        return [(title, cells) for title, cells, may_go in columns if width >= NARROW or not may_go]

    def _name_cells(self, width: int) -> int:
        return max(8, width - SPLIT_CELLS - sum(cells for _, cells in self._columns(width)))

    def row_segments(self, index: int, width: int) -> list[Segment]:
        """One file."""
        file = self.files[index]
        read = file.split != "skipped"
        base, muted = self.rich_style, self.style_of("muted")
        bits = self.losses.get(file.name)
        values = {
            "bits/B": "" if bits is None else loss(bits),
            "encoding": file.encoding,
            "docs": f"{file.documents:,}" if read else "",
            "tokens": f"{file.tokens:,}" if read else "",
            "B/token": f"{file.bytes / max(file.tokens, 1):.2f}" if read else "",
        }
        split = {"train": base, "skipped": self.style_of("problem")}.get(file.split, self.style_of("accent"))
        name = pad(" " + file.name, self._name_cells(width) - 1) + " "
        segments = [Segment(name, base if read else muted)]
        for title, cells in self._columns(width):
            segments.append(Segment(pad(values[title], cells, right=title != "encoding"), muted))
        return [*segments, Segment("  " + pad(file.split_name, SPLIT_CELLS - 2), split)]


class TextView(TokenView, inherit_bindings=False):
    """Part of a text with its tokens on alternating backgrounds, so that their boundaries are visible."""

    BINDINGS: ClassVar[list[BindingType]] = keys.bindings("text")

    def show(self, tokens: Sequence[tuple[int, str, bool]]) -> None:
        """Show (id, text, is `<|endoftext|>`) of each token. The cursor stays if the text is the same."""
        stretch = [
            # A token's background is chosen by its "probability": even, odd, or an opening.
            Token(text.replace("\n", "⏎\n"), 2.0 if opens else float(index % 2), generation=1, index=token)
            for index, (token, text, opens) in enumerate(tokens)
        ]
        if stretch == list(self.tokens):
            return
        self.clear()
        self.follow = False
        self.surprise = True
        self.append(stretch)

    def action_move(self, by: int) -> None:
        """Move to a neighboring token; the first move starts at the top of what is visible."""
        if self.tokens and self.cursor is None:
            self.cursor = self.wrapper.lines[self.top][0][0]
        else:
            super().action_move(by)

    def shade(self, probability: float | None) -> Style:
        """The background of an even token, of an odd one, or of an opening."""
        if not self._shades:
            variables = self.app.theme_variables
            base = Color.parse(variables.get("background", "#000000"))
            text = Color.parse(variables.get("foreground", "#ffffff"))
            accent = Color.parse(variables.get("accent", "#5fafff"))
            for mixed in (base.blend(text, 0.08), base.blend(text, 0.22), base.blend(accent, 0.6)):
                self._shades.append(themes.shaded(mixed, text, base))
        return self._shades[int(probability or 0)]
