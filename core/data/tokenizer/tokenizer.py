"""Text to tokens and back: one small class over `tiktoken.Encoding`, for every kind of vocabulary.

Every vocabulary contains all 256 bytes, so any text encodes and decodes to itself. The kinds differ in what
else they contain: `byte` nothing, `char` the other characters of the training text, `auto` merges learned
from the training text, `gpt2` GPT-2's merges. The last id is always `<|endoftext|>`; it opens a document and
never results from encoding text, not even text that spells it. `core/data/tokenizer/vocabulary.py` learns and
locates vocabularies.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.system.files import read_limited, write_atomic

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
FORMAT = 1
MAX_VOCABULARY = 1 << 21
LARGEST_FILE = 1 << 26
LONGEST_KIND = 40
LONGEST_PATTERN = 2000

# GPT-2's rule for splitting text into words: contractions, letters, digits, symbols (each with the space
# before it), then white space, the last character of which belongs to the following word.
WORD_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CHARACTER_PATTERN = r"(?s:.)"

# Something of everything that a pattern from elsewhere must not skip.
_PROBE = (
    " \t\n\r\n'tis the 1st_word-2,345.67 (é ß Ж 鯨 한 ع א ไ ②½ \u0301\u200d\ufeff😀)\0\x7f  \n\n x"
    + "".join(map(chr, range(32, 0x250)))
)

Ids = npt.NDArray[np.uint32]


class Tokenizer:
    """An immutable vocabulary. `tokens[i]` are the bytes of id i; the id after the last one is `eot`."""

    def __init__(self, kind: str, pattern: str, tokens: Iterable[bytes]) -> None:
        self.kind = kind
        self.pattern = pattern
        self.tokens = tuple(tokens)
        missing = set(map(_byte, range(256))).difference(self.tokens)
        if missing or len(set(self.tokens)) != len(self.tokens):
            what = f"{len(missing)} of the 256 bytes are missing" if missing else "a token occurs twice"
            raise UserError(f"this vocabulary cannot be used: {what}, so text could not be restored from it")
        if kind == "byte" and self.tokens != tuple(map(_byte, range(256))):
            raise UserError("this vocabulary is called byte, but its ids are not the bytes")

    @property
    def has_own_pattern(self) -> bool:
        """Whether the pattern is one of ours, which skip no character."""
        return self.pattern in (WORD_PATTERN, CHARACTER_PATTERN)

    @property
    def eot(self) -> int:
        """The id that opens every document."""
        return len(self.tokens)

    @property
    def vocab_size(self) -> int:
        """The number of ids, `eot` included."""
        return len(self.tokens) + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @cached_property
    def hash(self) -> str:
        """A fingerprint of everything that determines an encoding; the same for equal vocabularies."""
        digest = hashlib.sha256(self.pattern.encode())
        for token in self.tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """The tiktoken encoder, built when it is first needed."""
        import tiktoken

        return tiktoken.Encoding(
            f"mamba-tui-{self.kind}-{self.hash[:12]}",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={END_OF_TEXT: self.eot},
        )

    def encode(self, text: str) -> Ids:
        """Ids (N,) of a text, none of them `eot`. Half a surrogate pair becomes U+FFFD."""
        if not text:
            return np.empty(0, np.uint32)
        try:
            if self.kind == "byte":
                return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)
            if self._table is not None and (ids := self._look_up(text)) is not None:
                return ids
            encoded = self._encode(text)
            if not self.has_own_pattern and self.token_lengths[encoded].sum() != len(text.encode()):
                raise UserError("this vocabulary's pattern skips part of a text, which would be lost")
            return encoded
        except UnicodeEncodeError:
            return self.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _encode(self, text: str) -> Ids:
        try:
            encoded: Ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:
            # What a pattern from elsewhere can do to the encoder: it matches nothing at all, or without end.
            if type(error).__name__ != "PanicException" or self.has_own_pattern:
                raise
            raise UserError("this vocabulary's pattern cannot be used on a text") from None
        return encoded

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; `eot` gives its name. The bytes may end inside a character."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id. Raises IndexError for an id outside the vocabulary."""
        if token == self.eot:
            return END_OF_TEXT.encode()
        if token < 0:
            raise IndexError(f"token {token} is not in a vocabulary of {self.vocab_size}")
        return self.tokens[token]

    @cached_property
    def token_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of text per id (V,); 0 for `eot`."""
        return np.array([*map(len, self.tokens), 0], np.int64)

    @cached_property
    def _table(self) -> npt.NDArray[np.int64] | None:
        """Ids by code point, -1 if there is none; only for vocabularies of single characters."""
        if self.pattern != CHARACTER_PATTERN:
            return None
        known = {}
        for rank, token in enumerate(self.tokens):
            try:
                text = token.decode()
            except UnicodeDecodeError:
                continue
            if len(text) != 1:
                return None
            known[ord(text)] = rank
        table = np.full(max(known) + 2, -1, np.int64)
        table[list(known)] = list(known.values())
        return table

    def _look_up(self, text: str) -> Ids | None:
        """Encode by table; None if a character isn't in the vocabulary."""
        assert self._table is not None
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        return None if ids.min() < 0 else ids.astype(np.uint32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-compatible form for files and checkpoints, read by `from_dict`."""
        tokens = [base64.b64encode(token).decode() for token in self.tokens]
        return {"format": FORMAT, "kind": self.kind, "pattern": self.pattern, "tokens": tokens}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "tokenizer") -> Tokenizer:
        """The tokenizer from its `to_dict` form. Raises UserError naming `source` for anything else."""
        # Types first: a checkpoint may contain a tensor here, which has no truth value and can be endless in
        # a loop.
        version = data.get("format") if isinstance(data, Mapping) else None
        if not isinstance(version, int) or version != FORMAT:
            raise UserError(f"{source} is not a tokenizer of mamba-tui (format {FORMAT})")
        try:
            words, kind, pattern = data["tokens"], data["kind"], data["pattern"]
            if not isinstance(words, list) or not all(
                isinstance(word, str) for word in (*words, kind, pattern)
            ):
                raise TypeError(
                    "its tokens are not a list of strings, or its kind or its pattern is not a string"
                )
            tokens = [base64.b64decode(word, validate=True) for word in words]
            (kind + pattern).encode()  # half a surrogate pair belongs to no text
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} is a damaged tokenizer: {error}") from error
        if len(tokens) > MAX_VOCABULARY:
            raise UserError(f"{source} has {len(tokens)} tokens; at most {MAX_VOCABULARY} are accepted")
        if len(kind) > LONGEST_KIND or len(pattern) > LONGEST_PATTERN:
            raise UserError(f"{source} is a damaged tokenizer: its kind or its pattern is too long")
        tokenizer = cls(kind, pattern, tokens)
        if not tokenizer.has_own_pattern:
            if _matches_nothing(pattern):
                raise UserError(f"{source} cannot be used: its pattern {pattern[:80]!r} matches no character")
            try:
                tokenizer.encode(_PROBE)
            except ValueError as error:
                raise UserError(
                    f"{source} has a pattern that is not a valid regular expression: {pattern[:80]!r}"
                ) from error
            except UserError as error:
                raise UserError(f"{source} cannot be used: {error}") from error
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json atomically. Raises UserError if it cannot be written."""
        path = Path(path)
        try:
            write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=True).encode("ascii"))
        except OSError as error:
            raise UserError(f"cannot write the tokenizer {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path, *, follow_links: bool = True) -> Tokenizer:
        """Read a tokenizer.json. Raises UserError naming the file if that fails."""
        try:
            data = json.loads(read_limited(path, LARGEST_FILE, follow_links=follow_links))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"the tokenizer {path} is not JSON: {error}") from error
        return cls.from_dict(data, str(path))


def _matches_nothing(pattern: str) -> bool:
    """Whether a pattern matches an empty first word in any text, which the encoder can't handle."""
    try:
        match = re.match(pattern, "\0")
    except (re.error, RecursionError, OverflowError):
        return False  # it is written for the encoder's own regular expressions
    return match is not None and not match.group()


def _byte(value: int) -> bytes:
    return bytes((value,))


def byte_tokenizer() -> Tokenizer:
    """The vocabulary of the 256 bytes: id = byte."""
    return Tokenizer("byte", CHARACTER_PATTERN, map(_byte, range(256)))


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """The 256 bytes and every non-ASCII character given (ASCII characters are bytes already).

    Characters outside the vocabulary are spelled in UTF-8 bytes, so every text can still be restored.
    """
    others = sorted({character for character in characters if ord(character) > 127})
    tokens = [*map(_byte, range(256)), *(character.encode() for character in others)]
    return Tokenizer("char", CHARACTER_PATTERN, tokens)
