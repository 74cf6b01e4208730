"""Probabilities to integer frequencies, and symbols to bits: interleaved rANS (arXiv 1311.2540).

Every stream codes its own symbols with a 64-bit state, 32 bits are moved in or out at a time, and all streams
share one sequence of 32-bit words. rANS returns symbols in the reverse of the order in which they were coded,
so the encoder goes through them backward, after all probabilities are known; the decoder goes forward, on the
model's device. All arithmetic is in integers except for one softmax.

Shapes: S streams, V symbols, T steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PRECISION = 28
TOTAL = 1 << PRECISION
"""The sum of all symbols' frequencies: large enough that a symbol of frequency 1 costs the others nothing."""
LOWEST_STATE = 1 << 31
WORD = 32
UNUSED = 2.0**-16
"""The share of TOTAL that rounding in the softmax may take; the rest goes to the likeliest symbol."""
EXTREME = 1e30


def frequencies(logits: Tensor) -> Tensor:
    """Integers (S, V) int64 of at least 1, each row with the sum TOTAL, from any logits (S, V).

    The more probable of two symbols never has the lower frequency. NaN counts as impossible and infinity as
    certain, so a model that diverged compresses badly, but exactly.
    """
    finite = torch.nan_to_num(logits.float(), nan=-EXTREME, posinf=EXTREME, neginf=-EXTREME)
    shares = torch.softmax(finite, 1)
    room = (TOTAL - logits.shape[1]) * (1 - UNUSED)
    counts = (shares * room).to(torch.int64) + 1
    likeliest = shares.argmax(1, keepdim=True)
    return counts.scatter_add_(1, likeliest, TOTAL - counts.sum(1, keepdim=True))


def encode(
    starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], last: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """The final states (S,) and the words of T steps of S streams.

    `starts` and `counts` (T, S) are the sum of the frequencies before each symbol, and its own. In the last
    step only the first `last` streams have a symbol.
    """
    steps, streams = starts.shape
    state = np.full(streams, LOWEST_STATE, np.uint64)
    first, own = starts.astype(np.uint64), counts.astype(np.uint64)
    words: list[npt.NDArray[np.uint32]] = []
    precision, word = np.uint64(PRECISION), np.uint64(WORD)
    limit_shift = np.uint64(31 + WORD - PRECISION)
    for step in reversed(range(steps)):
        active = last if step == steps - 1 else streams
        count, start, x = own[step, :active], first[step, :active], state[:active]
        full = x >= count << limit_shift
        words.append(x[full].astype(np.uint32))
        x = np.where(full, x >> word, x)
        whole, rest = np.divmod(x, count)
        state[:active] = (whole << precision) + rest + start
    return state, np.concatenate(words[::-1]) if words else np.empty(0, np.uint32)


class StreamDecoder:
    """Returns the symbols that `encode` was given, one of every stream at a time."""

    def __init__(
        self, state: npt.NDArray[np.uint64], words: npt.NDArray[np.uint32], device: torch.device
    ) -> None:
        self._state = torch.from_numpy(state.astype(np.int64)).to(device)
        # One more than there are: a damaged file may ask for words that it doesn't have.
        self._words = torch.from_numpy(np.append(words, np.uint32(0)).astype(np.int64)).to(device)
        self._read = torch.zeros((), dtype=torch.int64, device=device)

    def next(self, counts: Tensor, active: int) -> Tensor:
        """The symbols (active,) of the first `active` streams, whose `frequencies` are (S, V)."""
        counts = counts[:active]
        sums = counts.cumsum(1)
        x = self._state[:active]
        slot = (x & (TOTAL - 1)).unsqueeze(1)
        symbol = torch.searchsorted(sums, slot, right=True)
        count = counts.gather(1, symbol)
        x = (count * (x >> PRECISION).unsqueeze(1) + slot - (sums.gather(1, symbol) - count)).squeeze(1)
        empty = x < LOWEST_STATE
        at = (self._read + empty.cumsum(0) - 1).clamp_(0, len(self._words) - 1)
        self._state[:active] = torch.where(empty, (x << WORD) | self._words[at], x)
        self._read += empty.sum()
        return symbol.squeeze(1)
