"""The encoding of a file: by its BOM, otherwise UTF-8, otherwise as declared, otherwise a guess that is
reported.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from core.data.corpus.stray_bytes import (
    STRAY,
    SURROGATE_PAIR,
    StrayDecoder,
    StrayLineDecoder,
    is_single_byte,
)
from core.errors import UserError

SAMPLE = 1 << 16

# UTF-32 first: its little-endian BOM begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an office document)"),
    (b"\x1f\x8b", "gzip data; name it .txt.gz"),
    (b"\x7fELF", "a program"),
)
CONTROLS = bytes(sorted(set(range(32)) - {9, 10, 13} | {127}))


@dataclass(frozen=True)
class Guess:
    """An encoding, a note for the user, and the reason if there is no other choice."""

    encoding: str
    note: str = ""
    because: str = ""


BINARY = "looks like a binary file, not text; if it is text, set `encoding`"


class NotTextError(Exception):
    """The file isn't text; the message says what it looks like instead."""


def check_declared(encoding: str) -> str | None:
    """The standard name of a declared encoding, None for "auto". Raises UserError for an unknown one."""
    if encoding.strip().lower() == "auto":
        return None
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except (LookupError, ValueError, TypeError):
        raise UserError(
            f'encoding is "{encoding}", which is not known; accepted: auto, or a name such as latin-1, '
            "cp1252, utf-16-le, shift_jis or koi8-r"
        ) from None
    return name


def first_guess(head: bytes, declared: str | None) -> Guess:
    """The encoding to try first, from the first bytes.

    Raises NotTextError for files that are clearly not text.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return Guess(encoding, because="its BOM says")
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            raise NotTextError(f"is {what}, not text")
    guess = _unmarked_utf16(head)
    if guess is not None:
        return guess
    if declared is None and (guess := _utf16_of_other_letters(head)) is not None:
        return guess
    if _control_share(head) > 0.1:
        if declared is not None:
            return Guess(declared, f"decoded as {declared}, as declared", "was declared")
        raise NotTextError(BINARY)
    return Guess("utf-8")


@dataclass(frozen=True)
class Trouble:
    """Where a file isn't UTF-8: the bytes around the first error, and statistics of its lines.

    `letters_before` counts the non-ASCII characters before the error, `good_lines` the lines with several
    valid non-ASCII characters, `bad_lines` those that aren't UTF-8, many of which are in `sample`.
    """

    around: bytes
    letters_before: int
    good_lines: int
    bad_lines: int
    sample: bytes

    @property
    def is_mixed(self) -> bool:
        """Whether the file is UTF-8 after all.

        Other encodings look like UTF-8 once by accident, but not repeatedly.
        """
        lines = self.good_lines + self.bad_lines
        return self.letters_before >= 3 or (self.good_lines >= 3 and self.good_lines >= 0.05 * lines)


def next_guess(head: bytes, trouble: Trouble, declared: str | None) -> Guess:
    """The encoding of a file that is not UTF-8."""
    if declared is not None:
        return Guess(declared, f"decoded as {declared}, as declared")
    # Legacy encodings don't use control bytes; a few percent of them means it isn't prose.
    if _control_share(head) > 0.02 or _control_share(trouble.around) > 0.02:
        raise NotTextError(BINARY)
    if trouble.is_mixed or _has_surrogate_pairs(trouble.sample):
        return Guess(f"utf-8{STRAY}{_encoding_of_strays(trouble.sample)}")
    name = _detect(trouble.sample if _strays(trouble.sample) >= ENOUGH_STRAYS else _wider(head, trouble))
    return Guess(name, f"not UTF-8: decoded as {name} (guessed); set `encoding` if it is wrong")


def make_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder for the encoding of a `Guess`; invalid bytes are errors."""
    name, plus, strays = encoding.partition(STRAY)
    if plus and not is_single_byte(strays):
        return StrayLineDecoder(strays)
    return StrayDecoder(strays) if plus else codecs.getincrementaldecoder(name)("strict")


def _has_surrogate_pairs(sample: bytes) -> bool:
    """Whether most of what is not ASCII are characters written as two surrogates (CESU-8)."""
    rest, pairs = SURROGATE_PAIR.subn(b"", sample)
    return pairs * 6 > _strays(rest)


def _encoding_of_strays(sample: bytes) -> str:
    """The encoding of the bytes that are not UTF-8; Windows-1252 unless there are enough to tell."""
    if eastern := _eastern(b"\n".join(line for line in sample.split(b"\n") if not _is_utf8(line))):
        return eastern
    strays = _UTF8_LETTERS.sub(b"", sample)
    if _strays(strays) < ENOUGH_STRAYS:
        return "cp1252"
    name = _detect(strays)
    return name if is_single_byte(name) else "cp1252"


def _eastern(lines: bytes) -> str:
    """The encoding of lines of Chinese, Japanese or Korean with multi-byte characters; "" for others."""
    if _strays(lines) < ENOUGH_STRAYS:
        return ""
    name = _detect(lines)
    if is_single_byte(name):
        return ""
    try:
        letters = [character for character in lines.decode(name) if character > "\x7f"]
    except UnicodeDecodeError:
        return ""
    # Bytes of other scripts decode too, to characters that hardly occur together.
    usual = sum("\u2e80" <= letter <= "\u9fff" or "\uac00" <= letter <= "\uffef" for letter in letters)
    return name if usual > 0.9 * len(letters) else ""


def _strays(data: bytes) -> int:
    """How many bytes are not ASCII."""
    return len(data) - len(data.decode("ascii", "ignore"))


def _wider(head: bytes, trouble: Trouble) -> bytes:
    """More than the number of non-ASCII lines if these are too few to tell an encoding by."""
    return trouble.around if trouble.around in head else head[: SAMPLE // 2] + trouble.around


ENOUGH_STRAYS = 100
_UTF8_LETTERS = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")

# Encodings of the Latin alphabet differ in few letters, and detectors confuse them. These are the common
# ones, likeliest first. Letters that occur together in only one language change the order: (any of these, any
# of those, none of these) when the sample is read as Windows-1252.
_LATIN = re.compile(
    r"ascii|latin_1|cp(125[0247]|437|77[05]|85[0278]|1140)|iso8859_(1|2|3|4|9|1[03-6])|mac_.*|hp_.*"
)
_CYRILLIC = ("cp1251", "koi8_r", "iso8859_5", "cp866", "mac_cyrillic")
_NOT_LATIN = ("mac_cyrillic", "mac_greek")
_USUAL = ("cp1252", "cp1250", "iso8859_2", "mac_roman", "cp850", "cp437")
_EASTERN = ("cp1250", "iso8859_2", "cp852", "cp1252")
_TURKISH = ("cp1254", "cp1252")
_TELLING = (
    ("ðýþ", "çü", "áíæ", _TURKISH),  # ğış
    ("õû", "áéíóú", "ãçêñèâîôä", _EASTERN),  # Hungarian ő and ű
    ("šž", "èæð", "", _EASTERN),  # Croatian č, ć and đ
)


def _detect(sample: bytes) -> str:
    """The likeliest legacy encoding of a sample; Windows-1252 by default."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    if best is not None and best.encoding in _CYRILLIC:
        # Detectors confuse these too, but only one of them has its capitals where words begin.
        return min((best.encoding, *_CYRILLIC), key=lambda name: _oddities(sample, name))
    if best is not None and (not _LATIN.fullmatch(best.encoding) or best.encoding in _NOT_LATIN):
        return best.encoding
    letters = set(sample.decode("cp1252", "ignore").lower())
    candidates: tuple[str, ...] = _USUAL
    for some, others, none, order in _TELLING:
        if letters & set(some) and letters & set(others) and not letters & set(none):
            candidates = order
            break
    return min(candidates, key=lambda name: _oddities(sample, name))


def _oddities(sample: bytes, encoding: str) -> float:
    """How many symbols, digits or capitals are in the middle of words when decoded this way."""
    try:
        # The sample may begin and end inside a character, but these encodings have one byte per character.
        text = sample.decode(encoding)
    except UnicodeDecodeError:
        return math.inf
    count = 0
    for match in _BEYOND_ASCII.finditer(text):
        before, character, after = match.groups()
        inside = before.isalpha() or after.isalpha()
        kind = unicodedata.category(character)
        if kind in ("Lu", "Lo"):
            count += before.islower() or character in "ªº"
        elif kind[0] in "NSC":
            count += inside
        elif kind[0] == "P":
            count += before.isalpha() and after.isalpha() and character not in "’‘·–—…"
    return count


_BEYOND_ASCII = re.compile(r"(?<=(.))([^\x00-\x7f])(?=(.))", re.DOTALL)


def _unmarked_utf16(head: bytes) -> Guess | None:
    """UTF-16 of mostly Latin text has a zero in every second byte."""
    even, odd = head[0::2], head[1::2]
    if len(odd) < 2:
        return None
    zeros = even.count(0) / len(even), odd.count(0) / len(odd)
    for share, other, name in ((zeros[1], zeros[0], "utf-16-le"), (zeros[0], zeros[1], "utf-16-be")):
        if share > 0.4 and other < 0.05 and _control_share(head.replace(b"\0", b"")) < 0.02:
            return Guess(
                name, f"no BOM: decoded as {name}, because every second byte is zero", "its zeros say"
            )
    return None


def _utf16_of_other_letters(head: bytes) -> Guess | None:
    """UTF-16 in other alphabets: in the right byte order it has ASCII spaces and line ends.

    And nearly everything is then a letter or a common sign, which isn't true of data that isn't text.
    """
    head = head[: len(head) // 2 * 2]
    if len(head) < LEAST_UTF16 or 0 not in head:
        return None
    if _control_share(head.replace(b"\0", b"")) <= 0.02 and _is_utf8(head):
        return None  # text with zeros in it
    ascii_units = {
        order: sum(0x20 <= unit < 0x7F or unit in (9, 10, 13) for unit in _units(head, order))
        for order in ("le", "be")
    }
    order = max(ascii_units, key=lambda order: ascii_units[order])
    least = max(1, len(head) // 2000, 4 * min(ascii_units.values()))
    name = f"utf-16-{order}"
    if ascii_units[order] < least or _written_share(head, name) < 0.98:
        return None
    note = f"no BOM: decoded as {name} (guessed from its letters); set `encoding` if it is wrong"
    return Guess(name, note, "its letters say")


def _units(data: bytes, order: str) -> Iterator[int]:
    """The two-byte numbers that some bytes represent."""
    return (unit for (unit,) in struct.iter_unpack("<H" if order == "le" else ">H", data))


LEAST_UTF16 = 32


def _written_share(data: bytes, encoding: str) -> float:
    """The share of characters that people write with, when decoded this way."""
    text = data[:LOOKED_AT].decode(encoding, "replace")
    good = sum(char in "\n\r\t" or unicodedata.category(char)[0] in "LMNPZS" for char in text)
    return (good - text.count("\ufffd")) / max(len(text), 1)


LOOKED_AT = 1 << 13


def _is_utf8(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _control_share(data: bytes) -> float:
    return 1 - len(data.translate(None, CONTROLS)) / len(data) if data else 0.0
