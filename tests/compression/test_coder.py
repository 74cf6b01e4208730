"""The coder: integers from any logits, and every symbol restored at the cost of its probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.compression.coder import TOTAL, StreamDecoder, encode, frequencies

CPU = torch.device("cpu")
NUMBERS = st.floats(width=32)  # NaN and infinities too


@given(st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=3))
def test_frequencies_are_whole_positive_and_sum_to_the_total(rows):
    counts = frequencies(torch.tensor(rows, dtype=torch.float32))
    assert counts.dtype == torch.int64
    assert counts.min() >= 1
    assert counts.sum(1).tolist() == [TOTAL] * len(rows)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30))
def test_the_more_probable_never_has_the_lower_frequency(row):
    counts = frequencies(torch.tensor([row], dtype=torch.float32))[0]
    order = torch.tensor(row).argsort(stable=True)
    values = torch.tensor(row)[order]
    for i in range(len(row) - 1):
        assert counts[order[i]] <= counts[order[i + 1]] or values[i] == values[i + 1]


def test_frequencies_of_a_large_vocabulary_are_close_to_the_probabilities():
    logits = torch.randn(2, 50_000) * 4
    shares = frequencies(logits).double() / TOTAL
    expected = torch.softmax(logits.double(), 1)
    cost = -(expected * torch.log2(shares)).sum(1) + (expected * torch.log2(expected)).sum(1)
    assert cost.max() < 2e-3  # bits a token


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 40), st.data())
def test_every_symbol_comes_back(seed, streams, steps, data):
    last = data.draw(st.integers(1, streams))
    random = np.random.default_rng(seed)
    tables = frequencies(torch.from_numpy(random.normal(0, 6, (steps * streams, 11)))).view(
        steps, streams, 11
    )
    symbols = torch.from_numpy(random.integers(0, 11, (steps, streams)))
    counts = tables.gather(2, symbols[:, :, None])[:, :, 0]
    starts = (tables.cumsum(2).gather(2, symbols[:, :, None])[:, :, 0]) - counts
    states, words = encode(starts.numpy(), counts.numpy(), last)
    decoder = StreamDecoder(states, words, CPU)
    for step in range(steps):
        active = last if step == steps - 1 else streams
        assert decoder.next(tables[step], active).tolist() == symbols[step, :active].tolist()
    assert decoder._state.tolist() == [1 << 31] * streams  # and nothing is left over
    assert int(decoder._read) == len(words)


def test_costs_what_the_probabilities_say():
    random = np.random.default_rng(0)
    table = frequencies(torch.from_numpy(random.normal(0, 2, (1, 64))))[0]
    symbols = torch.multinomial(table.double(), 20_000, replacement=True).view(-1, 4)
    counts, starts = table[symbols], table.cumsum(0)[symbols] - table[symbols]
    states, words = encode(starts.numpy(), counts.numpy(), 4)
    ideal = -torch.log2(counts.double() / TOTAL).sum().item() / 8
    assert 8 * len(states) + 4 * len(words) < ideal * 1.0001 + 8 * len(states)


@pytest.mark.parametrize("words", [0, 3])
def test_a_decoder_without_its_words_ends_all_the_same(words):
    table = frequencies(torch.zeros(2, 5))
    decoder = StreamDecoder(np.full(2, (1 << 64) - 1, np.uint64), np.zeros(words, np.uint32), CPU)
    assert all(0 <= int(symbol) < 5 for _ in range(50) for symbol in decoder.next(table, 2))


def test_a_certain_symbol_is_nearly_free():
    table = frequencies(torch.tensor([[math.inf, 0.0, math.nan]]))[0]
    assert table.tolist() == [TOTAL - 2, 1, 1]
