"""Any bytes as tokens that can be turned back into exactly these bytes."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError

_ESCAPED = re.compile("([\udc80-\udcff]+)")
RUNS = 64
"""Bytes that aren't text may occur this many times per kilobyte; with more, everything is spelled in
bytes."""


def to_tokens(tokenizer: Tokenizer, data: bytes) -> npt.NDArray[np.int64]:
    """Ids (N,) whose bytes together are `data`, none of them `eot`.

    Text is encoded as text. Bytes that aren't UTF-8, and text that the tokenizer wouldn't restore, are
    spelled: every vocabulary has all 256 bytes.
    """
    spelled = np.array([tokenizer.tokens.index(bytes((value,))) for value in range(256)], np.int64)
    runs = _ESCAPED.split(data.decode("utf-8", "surrogateescape"))
    if len(runs) <= 1 + RUNS * (1 + len(data) // 1024):
        parts = []
        for index, run in enumerate(runs):
            raw = run.encode("utf-8", "surrogateescape")
            if index % 2:
                parts.append(spelled[np.frombuffer(raw, np.uint8)])
            else:
                parts.append(_encoded(tokenizer, run, raw, spelled))
        return np.concatenate(parts)
    return spelled[np.frombuffer(data, np.uint8)]


def _encoded(
    tokenizer: Tokenizer, text: str, raw: bytes, spelled: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    try:
        tokens = tokenizer.encode(text).astype(np.int64)
    except UserError:  # a pattern from elsewhere that skips part of the text
        tokens = np.empty(0, np.int64)
    if to_bytes(tokenizer, tokens) != raw:
        tokens = spelled[np.frombuffer(raw, np.uint8)]
    return tokens


def to_bytes(tokenizer: Tokenizer, tokens: npt.NDArray[np.int64]) -> bytes:
    """The bytes of tokens, exactly."""
    return tokenizer.decode_bytes(tokens.tolist())
