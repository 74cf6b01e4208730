import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import check
from core.data.loader import IGNORE, EvaluationLoader, SequentialLoader
from core.errors import UserError

EOT = 0


class ArrayStream:
    """A stream whose token at position p is p + 1, so that a batch shows where it was read."""

    def __init__(self, length, documents=()):
        self.tokens = np.arange(1, length + 1, dtype=np.uint32)
        self.tokens[list(documents)] = EOT
        self.documents = np.array(sorted(documents) or [0], np.int64)

    def __len__(self):
        return len(self.tokens)

    def gather(self, starts, count):
        assert starts.min() >= 0
        assert starts.max() + count <= len(self)
        return self.tokens[starts[:, None] + np.arange(count)]


@st.composite
def shapes(draw, least_chunks=1):
    """(tokens, batch_size, block_size, carry_chunks, seed), from tiny streams to comfortable ones."""
    block = draw(st.integers(1, 6))
    chunks = draw(st.integers(least_chunks, 60))
    tokens = chunks * block + 1 + draw(st.integers(0, block - 1))
    return tokens, draw(st.integers(1, 9)), block, draw(st.integers(1, 12)), draw(st.integers(0, 2**63 - 1))


def make(shape, carry=None):
    tokens, lanes, block, chunks, seed = shape
    return SequentialLoader(ArrayStream(tokens), EOT, lanes, block, chunks if carry is None else carry, seed)


def dealt_in(loader, epoch):
    """All segments of an epoch in order."""
    deck = loader._shuffle(epoch)
    return [deck[index] for index in range(len(deck))]


@settings(deadline=None)
@given(shape=shapes())
def test_every_epoch_deals_every_chunk_exactly_once(shape):
    loader = make(shape)
    dealt = []
    original = loader._deal

    def deal():
        rests = len(loader._rests)
        segment = original()
        if rests == len(loader._rests):
            dealt.append((loader._epoch, segment))
        return segment

    # The segments of the first epoch are dealt while the loader is made: rebuild them from the deck.
    first = [(0, segment) for segment in dealt_in(loader, 0)]
    loader._deal = deal
    while loader._epoch < 3:
        loader.next_positions()
    for epoch in range(3):
        chunks = Counter()
        of_epoch = first if epoch == 0 else [entry for entry in dealt if entry[0] == epoch]
        complete = dealt_in(loader, epoch)
        if epoch > 0 and len(of_epoch) < len(complete):
            continue  # with tiny streams an epoch may have been dealt while the loader was made
        for _, (start, length) in of_epoch:
            chunks.update(start + index * loader.block_size for index in range(length))
        offset = min(chunks)
        assert set(chunks.values()) == {1}
        assert sorted(chunks) == [offset + i * loader.block_size for i in range(loader.chunks)]


@settings(deadline=None)
@given(shape=shapes())
def test_what_is_read_is_what_was_dealt(shape):
    """No chunk is lost or read twice because of batch rows, staggering and epochs: after many steps the
    readings of any two chunks differ by no more than the number of unfinished epochs.
    """
    loader = make(shape)
    steps = 3 * (loader.chunks // loader.batch_size + 1)
    read = Counter()
    for _ in range(steps):
        starts, _ = loader.next_positions()
        # The grid shifts by less than a chunk from epoch to epoch.
        read.update((starts // loader.block_size).tolist())
    open_epochs = 2 + loader.batch_size // max(loader.chunks, 1)
    readings = [read[chunk] for chunk in range(loader.chunks)]
    assert max(readings) - min(readings) <= 2 * (open_epochs + 1)
    assert sum(read.values()) == steps * loader.batch_size


@settings(deadline=None)
@given(shape=shapes(least_chunks=20))
def test_one_full_epoch_is_read_chunk_by_chunk(shape):
    """Exactly: with a fixed grid, the first `chunks` readings of a divisible shape are all different chunks
    whenever every batch row has finished its segment.
    """
    loader = make(shape)
    segments = [(row.start, row.remaining) for row in loader._rows] + loader._rests
    segments += dealt_in(loader, 0)[loader._cursor :]
    if loader._epoch == 0:
        covered = Counter(
            start + index * loader.block_size for start, length in segments for index in range(length)
        )
        assert sorted(covered.elements()) == sorted(
            start + index * loader.block_size
            for start, length in dealt_in(loader, 0)
            for index in range(length)
        )


@settings(deadline=None)
@given(shape=shapes(), carry=st.integers(0, 12))
def test_batches_are_the_stream_and_lanes_read_on_unless_they_say_so(shape, carry):
    loader = make(shape, carry)
    previous = None
    for _ in range(30):
        batch = loader.next_batch()
        assert batch.x.shape == batch.y.shape == batch.doc_start.shape == (shape[1], shape[2])
        assert batch.x.dtype == batch.y.dtype == np.int64
        assert (batch.y == batch.x + 1).all()
        assert not batch.doc_start[:, 1:].any()
        if previous is None:
            assert batch.doc_start[:, 0].all()
        else:
            goes_on = batch.x[:, 0] == previous.y[:, -1]
            assert (goes_on | batch.doc_start[:, 0]).all()
        previous = batch


@given(carry=st.integers(1, 8))
def test_a_lane_carries_its_state_for_carry_chunks_at_most(carry):
    loader = SequentialLoader(ArrayStream(1001), EOT, 4, 5, carry, 7)
    since = np.zeros(4, int)
    for _ in range(200):
        _, jumped = loader.next_positions()
        since = np.where(jumped, 1, since + 1)
        assert since.max() <= carry


def test_lanes_jump_at_different_times():
    loader = SequentialLoader(ArrayStream(100_001), EOT, 32, 10, 8, 3)
    loader.next_positions()
    jumps = [int(loader.next_positions()[1].sum()) for _ in range(100)]
    assert set(jumps) == {4}


def test_orders_differ_between_epochs_and_seeds():
    loader = SequentialLoader(ArrayStream(1000), EOT, 1, 5, 2, 3)
    assert dealt_in(loader, 0) != dealt_in(loader, 1)
    assert dealt_in(make((1000, 1, 5, 2, 3)), 0) != dealt_in(make((1000, 1, 5, 2, 4)), 0)
    assert dealt_in(make((1000, 1, 5, 2, 3)), 0) == dealt_in(loader, 0)


@settings(deadline=None)
@given(shape=shapes(), carry=st.integers(0, 12), before=st.integers(0, 40), after=st.integers(1, 40))
def test_a_saved_loader_goes_on_bit_for_bit(shape, carry, before, after):
    one = make(shape, carry)
    for _ in range(before):
        one.next_positions()
    state = json.loads(json.dumps(one.state_dict()))
    two = make(shape, carry)
    two.load_state_dict(state)
    for _ in range(after):
        for a, b in zip(one.next_batch(), two.next_batch()):
            np.testing.assert_array_equal(a, b)
        assert one.epoch == two.epoch
    assert one.state_dict() == two.state_dict()


@settings(deadline=None)
@given(shape=shapes(least_chunks=30), lanes=st.integers(1, 9), before=st.integers(0, 10))
def test_with_other_lanes_the_epoch_is_still_read_once(shape, lanes, before):
    one = make(shape)
    if one.carry_chunks > shape[3] or one.chunks < 2 * lanes * one.carry_chunks:
        return
    read = Counter()
    for _ in range(before):
        read.update(one.next_positions()[0].tolist())
    two = make((shape[0], lanes, *shape[2:]))
    two.carry_chunks = one.carry_chunks
    two.load_state_dict(one.state_dict())
    assert two._consumed == one._consumed
    left = [(lane.start, lane.remaining) for lane in two._rows] + two._pending + two._rests
    deck = dealt_in(two, two._epoch)
    if one._epoch == two._epoch == 0:
        left += deck[two._cursor :]
        read.update(start + index * two.block_size for start, length in left for index in range(length))
        assert set(read.values()) == {1}
        assert len(read) == two.chunks


def test_a_changed_text_starts_a_new_epoch_instead_of_failing():
    state = make((1001, 4, 5, 2, 3)).state_dict()
    loader = make((901, 4, 5, 2, 3))
    loader.load_state_dict(state)
    assert loader.epoch == 1
    assert loader.next_batch().doc_start[:, 0].all()


@given(shape=shapes(least_chunks=12), lanes=st.integers(1, 6))
def test_without_a_limit_lanes_cover_the_text_and_wrap_around(shape, lanes):
    loader = SequentialLoader(ArrayStream(shape[0]), EOT, lanes, shape[2], 0, 1)
    read = set()
    for _ in range(-(-loader.chunks // lanes)):
        starts, _ = loader.next_positions()
        read.update((starts // shape[2]).tolist())
    assert read == set(range(loader.chunks))
    assert loader.epoch >= 1


def test_documents_and_jumps_are_the_places_where_state_restarts():
    stream = ArrayStream(41, documents=(0, 13, 27))
    loader = SequentialLoader(stream, EOT, 1, 10, 0, 1)
    batches = [loader.next_batch() for _ in range(5)]
    starts = [np.flatnonzero(batch.doc_start[0]).tolist() for batch in batches]
    assert starts == [[0], [3], [7], [], [0]]


def test_a_stream_shorter_than_a_chunk_is_a_sentence_with_both_lengths():
    with pytest.raises(UserError, match=r"20 tokens.*21.*block_size 20"):
        SequentialLoader(ArrayStream(20), EOT, 4, 20, 8, 1)
    SequentialLoader(ArrayStream(21), EOT, 4, 20, 8, 1).next_batch()


@settings(deadline=None)
@given(
    tokens=st.integers(2, 700),
    rows=st.integers(1, 9),
    block=st.integers(1, 12),
    batches=st.none() | st.integers(1, 8),
    carried=st.booleans(),
)
def test_evaluation_predicts_every_token_once_in_order(tokens, rows, block, batches, carried):
    loader = EvaluationLoader(ArrayStream(tokens), EOT, rows, block, batches, carried=carried)
    once, again = list(loader), list(loader)
    assert len(once) == len(loader)
    for a, b in zip(once, again):
        for left, right in zip(a, b):
            np.testing.assert_array_equal(left, right)
    predicted = [batch.y[batch.y != IGNORE].tolist() for batch in once]
    flat = [token for part in predicted for token in part]
    chunks = -(-(tokens - 1) // block)
    assert loader.rows == min(rows, max(1, chunks // 16) if carried else chunks)
    if loader.share == 1:
        assert sorted(flat) == sorted(
            np.asarray(ArrayStream(tokens).gather(np.array([0]), tokens)[0])[1:].tolist()
        )
    for row in range(loader.rows):
        x = np.concatenate([batch.x[row][batch.y[row] != IGNORE] for batch in once])
        y = np.concatenate([batch.y[row][batch.y[row] != IGNORE] for batch in once])
        np.testing.assert_array_equal(x[1:], y[:-1])
    assert once[0].doc_start[:, 0].all()
    assert all(batch.doc_start[:, 0].all() != carried for batch in once[1:])


def test_small_texts_are_evaluated_in_few_rows():
    """Each row begins with an empty state: 64 rows on 20 chunks would read nearly all chunks like that."""
    loader = EvaluationLoader(ArrayStream(20 * 16 + 1), EOT, 64, 16)
    assert (loader.rows, len(loader), loader.share) == (1, 20, 1.0)
    assert EvaluationLoader(ArrayStream(64 * 16 * 16 + 1), EOT, 64, 16).rows == 64


def test_an_evaluation_that_is_cut_short_reads_the_beginning_of_every_part():
    loader = EvaluationLoader(ArrayStream(64 * 16 * 16 + 1), EOT, 64, 16, 4)
    assert (loader.rows, len(loader), loader.share) == (64, 4, 0.25)


def test_evaluation_of_less_than_a_chunk_leaves_the_missing_targets_out():
    (batch,) = EvaluationLoader(ArrayStream(4), EOT, 2, 6, 5)
    assert batch.x.shape == (1, 6)
    assert batch.y[0].tolist() == [2, 3, 4, IGNORE, IGNORE, IGNORE]


def test_the_grid_of_chunks_moves_by_a_whole_chunk_whatever_the_length():
    for tokens in (641, 640, 650):
        loader = SequentialLoader(ArrayStream(tokens), EOT, 2, 10, 4, 1)
        offsets = {loader._shuffle(epoch).offset for epoch in range(200)}
        assert offsets >= set(range(10)), tokens


def test_a_loader_saved_before_the_grid_moved_goes_on_with_its_own_grid():
    loader = SequentialLoader(ArrayStream(641), EOT, 2, 10, 4, 1)
    loader._set_grid(0)
    state = loader.state_dict()
    del state["spare"]
    resumed = SequentialLoader(ArrayStream(641), EOT, 2, 10, 4, 1)
    resumed.load_state_dict(state)
    assert resumed.chunks == 64


def test_evaluation_of_nothing_is_refused():
    with pytest.raises(UserError, match="1 tokens"):
        EvaluationLoader(ArrayStream(1), EOT, 2, 6, 5)


@settings(deadline=None)
@given(shape=shapes(), data=st.data())
def test_documents_in_turns_deal_the_same_segments_evenly(shape, data):
    tokens, lanes, block, carry, seed = shape
    documents = {0} | data.draw(st.sets(st.integers(0, tokens - 1), max_size=6))
    stream = ArrayStream(tokens, documents)
    by_length = SequentialLoader(stream, EOT, lanes, block, carry, seed)
    in_turns = SequentialLoader(stream, EOT, lanes, block, carry, seed, "uniform")
    for epoch in (0, 3):
        dealt = dealt_in(in_turns, epoch)
        assert sorted(dealt) == sorted(dealt_in(by_length, epoch))
        owners = [int(np.searchsorted(stream.documents, start, "right")) for start, _ in dealt]
        # While a document lasts, it has had as many turns as any other, give or take the round under way.
        for position in range(len(owners)):
            had = {owner: owners[:position].count(owner) for owner in set(owners)}
            lasting = [had[owner] for owner in set(owners) if owner in owners[position:]]
            assert max(had.values()) - min(lasting) <= 1


def test_an_unknown_order_is_refused_by_the_configuration():
    assert check({"document_order": "random"})[1][0].key == "document_order"
