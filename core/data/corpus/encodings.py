"""The encoding of a file: by its BOM, else UTF-8, else as declared, else a guess that is reported."""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from dataclasses import dataclass

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


class NotTextError(Exception):
    """The file is not text; the message says what it looks like instead."""


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
    """The encoding to try first, from the first bytes. Raises NotTextError for what is clearly not text."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return Guess(encoding, because="its BOM says")
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            raise NotTextError(f"is {what}, not text")
    guess = _unmarked_utf16(head)
    if guess is not None:
        return guess
    if _control_share(head) > 0.1:
        if declared is not None:
            return Guess(declared, f"decoded as {declared}, as declared", "was declared")
        raise NotTextError("looks like a binary file, not text")
    return Guess("utf-8")


def next_guess(head: bytes, around: bytes, letters_before: int, declared: str | None) -> Guess:
    """The encoding of a file that is not UTF-8.

    `around` are the bytes where decoding failed, `letters_before` counts the non-ASCII characters before.
    """
    if declared is not None:
        return Guess(declared, f"decoded as {declared}, as declared")
    # Legacy encodings do not use control bytes; a few percent of them means it is not prose.
    if _control_share(head) > 0.02 or _control_share(around) > 0.02:
        raise NotTextError("looks like a binary file, not text")
    # Other encodings look like UTF-8 once by accident, but not repeatedly from the top of the file.
    if letters_before >= _CONVINCING:
        return Guess("utf-8" + STRAY, "UTF-8, except for some bytes that were read as Windows-1252")
    sample = around if around in head else head[: SAMPLE // 2] + around
    name = _detect(sample)
    return Guess(name, f"not UTF-8: decoded as {name} (guessed); set `encoding` if it is wrong")


def make_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder for the encoding of a `Guess`; invalid bytes are errors."""
    name = encoding.removesuffix(STRAY)
    return codecs.getincrementaldecoder(name)("strict" if name == encoding else STRAY)


def _read_stray(error: UnicodeError) -> tuple[str, int]:
    """Invalid bytes in a UTF-8 text: nearly always Windows-1252, from a text pasted into it."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    data = error.object[error.start : error.end]
    return "".join(_CP1252[byte] for byte in data), error.end


STRAY = "+cp1252"
_CONVINCING = 3
_CP1252 = [bytes((byte,)).decode("cp1252", "ignore") or chr(byte) for byte in range(256)]
codecs.register_error(STRAY, _read_stray)

# Encodings of the Latin alphabet differ in few letters, and detectors confuse them. These are the common
# ones, likeliest first. Letters that occur together in only one language change the order: (any of these,
# any of those, none of these) when the sample is read as Windows-1252.
_LATIN = re.compile(
    r"ascii|latin_1|cp(125[0247]|437|77[05]|85[0278]|1140)|iso8859_(1|2|3|4|9|1[03-6])|mac_.*|hp_.*"
)
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
    """How many symbols, digits or capitals stand in the middle of words when decoded this way."""
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
        letters = bytes(byte for byte in head if byte)
        if share > 0.4 and other < 0.05 and _control_share(letters) < 0.02:
            return Guess(
                name, f"no BOM: decoded as {name}, because every second byte is zero", "its zeros say"
            )
    return None


def _control_share(data: bytes) -> float:
    return 1 - len(data.translate(None, CONTROLS)) / len(data) if data else 0.0
