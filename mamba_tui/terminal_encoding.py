"""Terminals that aren't UTF-8: symbols and lines become ASCII of the same width; typed letters are kept.

Textual writes to standard error and decodes the keyboard as UTF-8, whatever the locale says.
"""

from __future__ import annotations

import codecs
import sys
import unicodedata

from rich.cells import cell_len

HANDLER = "mamba-tui-ascii"
SIGNS = {
    **dict.fromkeys("─━╌┈▔▁═", "-"),
    **dict.fromkeys("│┃▐▌▏▕‖║▊▎", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛×◆", "+"),
    **dict.fromkeys("●★■◉▪", "*"),
    **dict.fromkeys("○◌·•◦░", "."),
    **dict.fromkeys("█▓▒▇▆▅▄▃▂▀", "#"),
    **dict.fromkeys("▶▸→»›", ">"),
    **dict.fromkeys("◀◂←«‹", "<"),
    **dict.fromkeys("↑▲", "^"),
    **dict.fromkeys("↓▼", "v"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("–—", "-"),
    "✔": "Y",
    "✘": "X",
    "↻": "@",
    "⏎": "/",
    "…": ".",
}


def adapt_terminal() -> str:
    """If the terminal isn't UTF-8, replace characters it can't show by ASCII. Returns a notice, or ""."""
    output, keyboard = sys.__stderr__, sys.__stdin__
    if output is None or keyboard is None or _is_utf8(output.encoding):
        return ""
    codecs.register_error(HANDLER, _ascii)
    output.reconfigure(errors=HANDLER)
    if not _is_utf8(keyboard.encoding):
        _decode_keyboard(keyboard.encoding)
    return f"Not a UTF-8 terminal ({output.encoding}): using ASCII. LC_ALL=C.UTF-8 shows all characters."


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _decode_keyboard(encoding: str) -> None:
    from textual.drivers import linux_driver

    def decoder(_name: str) -> type[codecs.IncrementalDecoder] | object:
        return lambda: codecs.getincrementaldecoder(encoding)("replace")

    # Textual has no other way to set the keyboard's encoding.
    setattr(linux_driver, "getincrementaldecoder", decoder)  # noqa: B010


def _ascii(error: UnicodeError) -> tuple[str, int]:
    """An error handler for `codecs`: replacements for characters that can't be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(ascii_for, error.object[error.start : error.end])), error.end


def ascii_for(character: str) -> str:
    """ASCII of the same width as the character."""
    cells = cell_len(character)
    if "\u2800" <= character <= "\u28ff":
        dots = ord(character) - 0x2800
        high, low = dots & 0b00011011, dots & 0b11100100
        return ":" if high and low else "'" if high else "." if low else " "
    if character in SIGNS:
        return SIGNS[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain and len(plain) == cells else "?" * cells
