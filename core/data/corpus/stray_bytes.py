"""UTF-8 with invalid bytes in it: pasted sentences, files joined in two encodings, split emoji.

Two things go wrong in files that are mostly UTF-8. Bytes of another encoding (nearly always one byte per
character) are read in that encoding. And programs that use UTF-16 internally write the two halves of a
character above U+FFFF as three bytes each (CESU-8); such a pair is joined. Both are counted.
"""

from __future__ import annotations

import codecs
import re
import threading

STRAY = "+"
"""Separates UTF-8 from the encoding of the stray bytes in the name of such an encoding: `utf-8+cp1252`."""
HANDLER = "mamba-tui-stray"
SURROGATE_PAIR = re.compile(rb"\xed([\xa0-\xaf])([\x80-\xbf])\xed([\xb0-\xbf])([\x80-\xbf])")
_BEGUN = re.compile(rb"\xed(?:[\xa0-\xaf](?:[\x80-\xbf](?:\xed[\xb0-\xbf]?)?)?)?\Z")
_LONGEST = 6
_ASCII = bytes(range(128))
LONGEST_LINE = 1 << 22
"""Bytes of a line that are held back until its end is known."""
_current = threading.local()


def is_single_byte(encoding: str) -> bool:
    """Whether every byte is a character in an encoding."""
    high = bytes(range(128, 256))
    return len(high.decode(encoding, "replace")) == len(high)


class StrayDecoder(codecs.IncrementalDecoder):
    """Decodes UTF-8 block by block; invalid bytes are read as `encoding`, and counted."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self.name = encoding
        self.stray_bytes = 0
        self.joined_pairs = 0
        self.first_line = 0
        self._table = [bytes((byte,)).decode(encoding, "ignore") or chr(byte) for byte in range(256)]
        self._held = b""
        self._lines = 0

    def decode(self, data: bytes, final: bool = False) -> str:  # type: ignore[override]
        """The text of the next bytes; bytes that may belong to later ones are held back."""
        data = self._held + data
        end = len(data)
        if not final and (half := _BEGUN.search(data, max(0, end - _LONGEST + 1))):
            end = half.start()
        _current.decoder = self
        text, consumed = codecs.utf_8_decode(data[:end], HANDLER, final)
        self._held = data[consumed:]
        if not self.first_line:
            self._lines += data.count(b"\n", 0, consumed)
        return text

    @property
    def note(self) -> str:
        """What was read in another way than as UTF-8, in words."""
        parts = []
        if self.stray_bytes:
            name = "Windows-1252" if self.name == "cp1252" else f"{self.name} (guessed)"
            byte = "byte that was" if self.stray_bytes == 1 else "bytes that were"
            parts.append(f"{self.stray_bytes:,} {byte} read as {name}")
        if self.joined_pairs:
            pair = "pair" if self.joined_pairs == 1 else "pairs"
            parts.append(f"{self.joined_pairs:,} surrogate {pair}, joined")
        return f"UTF-8, except for {' and '.join(parts)}; the first in line {self.first_line:,}"

    def _read(self, error: UnicodeDecodeError) -> tuple[str, int]:
        if not self.first_line:
            self.first_line = self._lines + error.object.count(b"\n", 0, error.start) + 1
        if halves := SURROGATE_PAIR.match(error.object, error.start):
            first, second, third, fourth = (halves[group][0] & 0x3F for group in range(1, 5))
            self.joined_pairs += 1
            high, low = (first & 0xF) << 6 | second, (third & 0xF) << 6 | fourth
            return chr(0x10000 + (high << 10) + low), halves.end()
        stray = error.object[error.start : error.end]
        self.stray_bytes += len(stray)
        return "".join(self._table[byte] for byte in stray), error.end


class StrayLineDecoder(StrayDecoder):
    """The same for encodings with several bytes per character: a line is either UTF-8, or all of it is stray.

    Two bytes of such a character may form one of UTF-8, so strays can't be recognized byte by byte.
    """

    def decode(self, data: bytes, final: bool = False) -> str:  # type: ignore[override]
        """The text of complete lines; the others are held back."""
        data = self._held + data
        end = len(data) if final or len(data) > LONGEST_LINE else data.rfind(b"\n") + 1
        self._held = data[end:]
        return "".join(map(self._line, data[:end].splitlines(keepends=True)))

    def _line(self, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self.first_line = self.first_line or self._lines + 1
            self.stray_bytes += len(line.translate(None, _ASCII))
            text = line.decode(self.name, "replace")
        self._lines += line.endswith(b"\n")
        return text


def _handle(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    decoder: StrayDecoder = _current.decoder
    return decoder._read(error)


codecs.register_error(HANDLER, _handle)
