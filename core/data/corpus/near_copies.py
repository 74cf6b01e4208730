"""Texts that are nearly the same: editions, scans, files with an additional page.

Each text gets a sketch: the SKETCH smallest hashes of all its runs of RUN letters. Case, spaces and
punctuation are left out, so that line breaks and quotation marks make no difference. The share of hashes that
two sketches have in common estimates the share of runs that the texts have in common (Broder 1997, "On the
resemblance and containment of documents", bottom-k sketches).
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

RUN = 32
SKETCH = 32
SKETCHED_LETTERS = 1 << 18
"""Only the first letters of a text are used: editions of a book are alike from the beginning."""
ALIKE = 0.5
COMMON = 64
"""A hash shared by more texts than this is boilerplate, and says nothing about any two of them."""

_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Letters:
    """The first letters of a text that comes in stretches of UTF-8."""

    def __init__(self) -> None:
        self._first = bytearray()

    def see(self, data: bytes) -> None:
        """Add the next stretch."""
        missing = SKETCHED_LETTERS - len(self._first)
        for low in range(0, len(data) if missing else 0, SKETCHED_LETTERS):
            letters = data[low : low + SKETCHED_LETTERS].translate(_LOWER, _NO_LETTERS)
            self._first += letters[: SKETCHED_LETTERS - len(self._first)]
            if len(self._first) == SKETCHED_LETTERS:
                break

    @property
    def digest(self) -> str:
        """Equal for texts that begin with the same letters; "" if there are none."""
        return hashlib.blake2b(self._first, digest_size=16).hexdigest() if self._first else ""

    @property
    def sketch(self) -> str:
        """The sketch as text; "" if the text is too short for one."""
        letters = np.frombuffer(bytes(self._first), np.uint8).astype(np.uint64)
        if len(letters) < 4 * RUN:
            return ""
        hashes, width, factor = letters + np.uint64(1), 1, np.array([_FACTOR])  # arrays may overflow
        while width < RUN:  # each round joins neighbors into runs of twice the length
            hashes = hashes[:-width] * factor + hashes[width:]
            width, factor = 2 * width, factor * factor
        hashes ^= hashes >> np.uint64(29)
        hashes *= _FACTOR
        hashes ^= hashes >> np.uint64(32)
        if len(hashes) > 8 * SKETCH:
            hashes = np.partition(hashes, 8 * SKETCH)[: 8 * SKETCH]
        smallest = np.unique(hashes)[:SKETCH]
        return base64.b64encode(smallest.astype("<u8").tobytes()).decode() if len(smallest) == SKETCH else ""


def near_copies(sketches: Sequence[str], digests: Sequence[str]) -> list[tuple[int, int, float]]:
    """Pairs of texts, by their numbers, that are nearly but not quite the same, and how much they share."""
    numbers, hashes = [], []
    for number, sketch in enumerate(sketches):
        try:
            values = np.frombuffer(base64.b64decode(sketch), "<u8")
        except ValueError:
            continue
        numbers += [number] * len(values)
        hashes.append(values)
    if not hashes:
        return []
    every, owners = np.concatenate(hashes), np.array(numbers)
    order = np.argsort(every, kind="stable")
    every, owners = every[order], owners[order]
    borders = np.flatnonzero(np.diff(every)) + 1
    starts, ends = np.concatenate([[0], borders]), np.concatenate([borders, [len(every)]])
    several = (ends - starts > 1) & (ends - starts <= COMMON)
    shared: Counter[tuple[int, int]] = Counter()
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        shared.update(combinations(sorted(owners[start:end].tolist()), 2))
    return sorted(
        (first, second, count / SKETCH)
        for (first, second), count in shared.items()
        if count >= ALIKE * SKETCH and digests[first] != digests[second]
    )
