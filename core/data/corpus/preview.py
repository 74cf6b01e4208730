"""Text as the model sees it: token by token, with single bytes if a token isn't whole characters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.data.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token. `opens`: it is `<|endoftext|>`. Bytes of a split character are shown as `⟨E9⟩`."""

    id: int
    text: str
    opens: bool


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[TokenText]:
    """Each token with its text; a character that spans tokens is shown byte by byte."""
    return [
        TokenText(token, _spelled(tokenizer.token_bytes(token)), token == tokenizer.eot)
        for token in map(int, ids)
    ]


def _spelled(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        good = data[: error.start].decode()
        bad = "".join(f"⟨{byte:02X}⟩" for byte in data[error.start : error.end])
        return good + bad + _spelled(data[error.end :])
