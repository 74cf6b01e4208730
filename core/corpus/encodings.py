"""Which encoding a file is in: by its mark, else UTF-8, else what was declared, else a reported guess."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from core.errors import UserError

SAMPLE = 1 << 16

# UTF-32 first: its little-endian mark begins with UTF-16's.
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
    """An encoding, and how it came about if that needs saying."""

    encoding: str
    note: str = ""


class NotTextError(Exception):
    """The file holds no text; the message says what it looks like instead."""


def check_declared(encoding: str) -> str | None:
    """The normal name of a declared encoding, None for "auto". Raises UserError for an unknown one."""
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


def first_guess(head: bytes) -> Guess:
    """The encoding to try first, from the first bytes. Raises NotTextError for what is plainly no text."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return Guess(encoding)
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            raise NotTextError(f"is {what}, not text")
    guess = _unmarked_utf16(head)
    if guess is not None:
        return guess
    if _control_share(head) > 0.1:
        raise NotTextError("looks like a binary file, not text")
    return Guess("utf-8")


def next_guess(head: bytes, around: bytes, declared: str | None) -> Guess:
    """The encoding of a file that is not UTF-8. `around` are the bytes where that showed."""
    if declared is not None:
        return Guess(declared, f"decoded as {declared}, as declared")
    # Legacy encodings leave the control bytes unused; a few per cent of them is no prose.
    if _control_share(head) > 0.02 or _control_share(around) > 0.02:
        raise NotTextError("looks like a binary file, not text")
    sample = around if around in head else head[: SAMPLE // 2] + around
    name = _detect(sample)
    return Guess(name, f"not UTF-8: decoded as {name}, which was guessed; set `encoding` if it is wrong")


def _detect(sample: bytes) -> str:
    """The most likely legacy encoding of some text; Windows-1252 where nothing says otherwise."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample, explain=False).best()
    name = best.encoding if best is not None else "cp1252"
    # Western single-byte encodings share nearly all letters, and cp1252 is latin-1 with quotation
    # marks where latin-1 has unused control codes: it is the safer reading of either.
    if name in ("latin_1", "iso8859_1", "ascii", "cp1250", "cp1252", "cp437", "cp850", "cp858", "hp_roman8"):
        name = "cp1252"
    try:
        sample.decode(name)
    except UnicodeDecodeError as error:
        # The sample may end inside a character; anything else rules the guess out.
        if error.end < len(sample) - 4:
            return "latin-1"
    return name


def _unmarked_utf16(head: bytes) -> Guess | None:
    """UTF-16 of mostly Latin text shows as a zero in every second byte."""
    even, odd = head[0::2], head[1::2]
    if len(odd) < 2:
        return None
    zeros = even.count(0) / len(even), odd.count(0) / len(odd)
    for share, other, name in ((zeros[1], zeros[0], "utf-16-le"), (zeros[0], zeros[1], "utf-16-be")):
        letters = bytes(byte for byte in head if byte)
        if share > 0.4 and other < 0.05 and _control_share(letters) < 0.02:
            return Guess(name, f"no mark: decoded as {name}, by the zeros in every second byte")
    return None


def _control_share(data: bytes) -> float:
    return 1 - len(data.translate(None, CONTROLS)) / len(data) if data else 0.0
