"""The one way for text that we didn't write to reach the screen.

File names, run names, generated tokens and exception texts may contain escape sequences, bidirectional
overrides, lone surrogates or markup. `visible` turns every such character into a glyph of one cell, and
`safe` wraps the result in a `Content`, which Textual never parses as markup.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    from textual.content import Content

REPLACEMENT = "�"
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Terminals and Textual disagree about the width of these, which breaks the rest of the line.
DROPPED = frozenset(chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
MARKS_IN_A_ROW = 3


class _Glyphs(dict[int, str]):
    """For `str.translate`: decides about each code point once, by its category."""

    def __init__(self, known: dict[str, str]) -> None:
        super().__init__({ord(key): value for key, value in known.items()})

    def __missing__(self, code: int) -> str:
        glyph = _glyph(chr(code))
        # An endless stream of distinct characters must not become an endless table.
        if len(self) < 20_000:
            self[code] = glyph
        return glyph


def _glyph(character: str) -> str:
    if character in DROPPED:
        return ""
    if character in BIDI:
        return "⇄"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if character in FILLERS:
        return "·"
    match unicodedata.category(character):
        case "Zl" | "Zp":
            return "␤"
        case "Cc" | "Cs":
            return REPLACEMENT
        case "Cf":
            return "·"
        case _:
            return character


_ONE_LINE = _Glyphs({"\t": " "})
_MANY_LINES = _Glyphs({"\t": "    ", "\n": "\n"})


def visible(text: object, *, lines: bool = False) -> str:
    """`text` with every control or bidirectional character as a visible glyph.

    With `lines=True` newlines stay (and carriage returns before them are removed), otherwise they become
    glyphs.
    """
    raw = text if isinstance(text, str) else str(text)
    if raw.isascii() and raw.isprintable():
        return raw
    if lines:
        clean = raw.replace("\r\n", "\n").translate(_MANY_LINES)
    else:
        clean = raw.translate(_ONE_LINE)
    return clean if clean.isascii() else _tame_marks(clean)


def _tame_marks(text: str) -> str:
    """Limit stacks of combining marks, which would reach into the lines above and below."""
    kept: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)


def safe(text: object, *, lines: bool = False) -> Content:
    """`visible(text)` as Content that no widget parses as markup."""
    from textual.content import Content

    return Content(visible(text, lines=lines))


def clip(text: object, cells: int) -> str:
    """`visible(text)` cut to at most `cells` columns, with an ellipsis if something is missing."""
    # Cutting first prevents a name of a million characters from costing a million characters.
    raw = visible((text if isinstance(text, str) else str(text))[: 8 * max(cells, 1) + 8])
    if cell_len(raw) <= cells:
        return raw
    return set_cell_size(raw, cells - 1).rstrip() + "…" if cells > 0 else ""


def pad(text: object, cells: int, *, right: bool = False) -> str:
    """`clip(text)` padded with spaces to exactly `cells` columns, on the left if `right`."""
    cut = clip(text, cells)
    space = " " * (cells - cell_len(cut))
    return space + cut if right else cut + space
