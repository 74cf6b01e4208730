"""Token stream to batches: batch rows that read on, jump now and then, and resume bit for bit.

The stream is cut into chunks of `block_size` tokens; `carry_chunks` consecutive chunks make a segment. In an
epoch, segments are dealt to the batch rows in shuffled order, each exactly once. A row reads its segment
chunk by chunk, with the model's state carried along, then jumps to the next segment dealt. The rows' first
segments are cut to different lengths, so that afterwards only a few rows jump at a time. docs/text.md has
pictures. NumPy only: positions are numbers, and CUDA gathers tokens by them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from core.errors import UserError

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

IGNORE = -100
LARGEST_COUNT = (1 << 64) - 1
COUNTS = ("tokens", "block_size", "carry_chunks", "spare", "seed", "consumed", "epoch", "cursor")
CHUNKS_TO_SPARE_ONE = 32
"""In a text of this many chunks an epoch leaves one out, so that the grid of chunks can shift."""


class Stream(Protocol):
    """What a loader needs of a token stream; `documents` are the positions where documents begin."""

    documents: Int64

    def __len__(self) -> int: ...

    def gather(self, starts: Int64, count: int) -> npt.NDArray[np.integer[Any]]:
        """Tokens (len(starts), count), row b beginning at position starts[b]."""
        ...


class Batch(NamedTuple):
    """Tokens x (B, T), the tokens that follow them y (B, T), and where the model's state restarts."""

    x: Int64
    y: Int64
    doc_start: Bool


@dataclass
class _BatchRow:
    """Where a batch row reads next, how many chunks of its segment are left, and whether it just jumped."""

    start: int
    remaining: int
    jumped: bool = True


@dataclass
class _Deck:
    """The segments of an epoch as (first token, chunks), in shuffled order. The first one is shorter:
    `first`.

    Only the order is stored: a text of ten billion tokens has millions of segments.
    """

    offset: int
    first: int
    chunks: int
    block_size: int
    carry_chunks: int
    order: Int64

    def __len__(self) -> int:
        return len(self.order)

    def in_turns(self, documents: Int64, rng: np.random.Generator) -> None:
        """Reorder: in each round, every document that still has segments deals one of them.

        A segment belongs to the document of its first token.
        """
        lows = np.maximum(self.first + (self.order - 1) * self.carry_chunks, 0)
        starts = np.where(self.order == 0, 0, lows) * self.block_size + self.offset
        owners = np.searchsorted(documents, starts, "right")
        grouped = np.argsort(owners, kind="stable")
        sizes = np.diff(np.flatnonzero(np.diff(owners[grouped], prepend=-1, append=-1)))
        rounds = np.empty(len(owners))
        rounds[grouped] = np.concatenate([np.arange(size) for size in sizes])
        self.order = self.order[np.argsort(rounds + rng.random(len(rounds)), kind="stable")]

    def __getitem__(self, index: int) -> tuple[int, int]:
        number = int(self.order[index])
        low = 0 if number == 0 else self.first + (number - 1) * self.carry_chunks
        high = min(self.first + number * self.carry_chunks, self.chunks)
        return self.offset + low * self.block_size, high - low


class SequentialLoader:
    """Endless batches of training text.

    Attributes:
        rows: which rows of each batch are returned; `state_dict` always covers all rows.

    Raises UserError if the stream is shorter than one chunk and its last target.
    """

    def __init__(
        self,
        stream: Stream,
        eot: int,
        batch_size: int,
        block_size: int,
        carry_chunks: int,
        seed: int,
        document_order: str = "weighted",
        rows: slice = slice(None),
    ) -> None:
        if len(stream) < block_size + 1:
            raise UserError(
                f"the training text has {len(stream):,} tokens, fewer than the {block_size + 1:,} that "
                f"one chunk of block_size {block_size} needs: add text or lower block_size"
            )
        self.stream = stream
        self.eot = eot
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.document_order = document_order
        self.rows = rows
        self._wanted_carry = carry_chunks
        can_spare = carry_chunks > 0 and len(stream) > CHUNKS_TO_SPARE_ONE * block_size
        self._set_grid(block_size if can_spare else 0)
        self._consumed = 0
        self._epoch = 0
        self._cursor = 0
        self._pending: list[tuple[int, int]] = []  # dealt before the deck
        self._rests: list[tuple[int, int]] = []  # dealt after the deck, before the next epoch
        self._deck: _Deck | None = None
        if carry_chunks == 0:
            self._rows = [_BatchRow(index * self.chunks // batch_size, 0) for index in range(batch_size)]
            for row in self._rows:
                row.start *= block_size
        else:
            self._rows = [_BatchRow(*self._deal()) for _ in range(batch_size)]
            self._stagger()

    @property
    def epoch(self) -> float:
        """How often the training text has been read, with a fraction."""
        return self._consumed / self.chunks

    def _set_grid(self, spare: int) -> None:
        """Cut the text into chunks, leaving out `spare` tokens in every epoch so that the grid can shift."""
        self._spare = spare
        self.chunks, self.carry_chunks = self._grid(spare)

    def _grid(self, spare: int) -> tuple[int, int]:
        """Chunks of the text, and of a segment, if `spare` tokens are left out."""
        chunks = (len(self.stream) - 1 - spare) // self.block_size
        # With fewer segments than rows, several rows would read the same text.
        return chunks, min(self._wanted_carry, max(1, chunks // self.batch_size))

    def row_positions(self) -> list[int]:
        """Where in the text each batch row reads next; of all rows, whichever are handed out."""
        return [row.start for row in self._rows]

    def next_positions(self) -> tuple[Int64, Bool]:
        """Where each row's next chunk begins (B,), and which rows have jumped there (B,)."""
        starts = np.array([row.start for row in self._rows], np.int64)
        jumped = np.array([row.jumped for row in self._rows], np.bool_)
        for row in self._rows:
            self._advance(row)
        self._consumed += len(self._rows)
        return starts[self.rows], jumped[self.rows]

    def next_batch(self) -> Batch:
        """Read the next batch from the stream."""
        starts, jumped = self.next_positions()
        return make_batch(self.stream, self.eot, starts, jumped, self.block_size)

    def _advance(self, row: _BatchRow) -> None:
        row.start += self.block_size
        row.jumped = False
        if self.carry_chunks == 0:
            if row.start + self.block_size + 1 > len(self.stream):
                row.start, row.jumped = 0, True
            return
        row.remaining -= 1
        if row.remaining == 0:
            row.start, row.remaining = self._deal()
            row.jumped = True

    def _deal(self) -> tuple[int, int]:
        """The next segment: (first token, chunks)."""
        if self._pending:
            return self._pending.pop(0)
        if self._deck is None:
            self._deck = self._shuffle(self._epoch)
        if self._cursor >= len(self._deck):
            if self._rests:
                return self._rests.pop(0)
            self._epoch, self._cursor = self._epoch + 1, 0
            self._deck = self._shuffle(self._epoch)
        self._cursor += 1
        return self._deck[self._cursor - 1]

    def _shuffle(self, epoch: int) -> _Deck:
        """The segments of an epoch in the order they are dealt; depends only on random seed and epoch.

        Each epoch shifts the grid of chunks by up to a chunk, and the grid of segments within the chunks, so
        that borders fall elsewhere.
        """
        rng = np.random.default_rng([self.seed, epoch])
        slack = len(self.stream) - 1 - self.chunks * self.block_size
        offset = int(rng.integers(slack + 1))
        first = int(rng.integers(1, self.carry_chunks + 1))
        first = min(first, self.chunks)
        count = 1 + -(-(self.chunks - first) // self.carry_chunks)
        order = rng.permutation(count)
        deck = _Deck(offset, first, self.chunks, self.block_size, self.carry_chunks, order)
        if self.document_order == "uniform":
            deck.in_turns(self.stream.documents, rng)
        return deck

    def _stagger(self) -> None:
        """Cut the first segments to different lengths, from 1 to carry_chunks.

        The remainders are dealt at the end of the epoch: earlier they would undo the spread.
        """
        rng = np.random.default_rng([self.seed, 0, 1])
        for index, row in zip(rng.permutation(len(self._rows)), self._rows, strict=True):
            keep = min(row.remaining, 1 + int(index) * self.carry_chunks // len(self._rows))
            if keep < row.remaining:
                self._rests.append((row.start + keep * self.block_size, row.remaining - keep))
                row.remaining = keep
        self._rests = [self._rests[index] for index in rng.permutation(len(self._rests))]

    def state_dict(self) -> dict[str, Any]:
        """Everything that determines later batches, as JSON-compatible values."""
        return {
            "tokens": len(self.stream),
            "block_size": self.block_size,
            "carry_chunks": self.carry_chunks,
            "spare": self._spare,
            "seed": self.seed,
            "consumed": self._consumed,
            "epoch": self._epoch,
            "cursor": self._cursor,
            "pending": [list(segment) for segment in self._pending],
            "rests": [list(segment) for segment in self._rests],
            "rows": [[row.start, row.remaining, int(row.jumped)] for row in self._rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        With another batch size, the rows first finish the unfinished segments. After a change of the text or
        of the shape of chunks the old positions mean nothing, so the loader starts a new epoch.

        Raises ValueError for values that are impossible for a text of this length, before anything is
        changed.
        """
        counts = {key: _count(state, key, 0 if key == "spare" else None) for key in COUNTS}
        spare = min(counts["spare"], len(self.stream) - 1 - self.block_size)
        carry_chunks = self.carry_chunks if spare == self._spare else self._grid(spare)[1]
        same = (counts["tokens"], counts["block_size"], counts["carry_chunks"], counts["seed"]) == (
            len(self.stream), self.block_size, carry_chunks, self.seed
        )  # fmt: skip
        if not same:
            if spare != self._spare:
                self._set_grid(spare)
            self._restart(counts["epoch"] + 1)
            return
        rows = [_BatchRow(*self._row(row)) for row in _list(state, "rows")]
        pending = [self._segment(segment) for segment in _list(state, "pending")]
        rests = [self._segment(segment) for segment in _list(state, "rests")]
        if spare != self._spare:
            self._set_grid(spare)
        self._consumed, self._epoch = counts["consumed"], counts["epoch"]
        self._cursor, self._deck = counts["cursor"], None
        self._pending, self._rests = pending, rests
        if len(rows) != len(self._rows) and self.carry_chunks:
            under_way = [(row.start, row.remaining) for row in rows]
            self._pending = under_way + self._pending
            rows = [_BatchRow(*self._deal()) for _ in self._rows]
        if len(rows) == len(self._rows):
            self._rows = rows

    def _row(self, row: Any) -> tuple[int, int, bool]:
        if not isinstance(row, (list, tuple)) or len(row) != 3:
            raise ValueError("its loader's batch rows are not three numbers each")
        start, rest, jumped = row
        jumped = type(jumped) not in (int, bool) or bool(jumped)
        if self.carry_chunks == 0:  # rows read on to the end of the text
            return self._segment((start, 1))[0], 0, jumped
        return *self._segment((start, rest)), jumped

    def _segment(self, segment: Any) -> tuple[int, int]:
        """(first token, chunks), checked to be inside the text. Raises ValueError for anything else."""
        pair = segment if isinstance(segment, (list, tuple)) and len(segment) == 2 else (None, None)
        start, length = pair
        if type(start) is not int or type(length) is not int:
            raise ValueError("its loader's segments are not two whole numbers each")
        if start < 0 or length < 1 or start + length * self.block_size + 1 > len(self.stream):
            raise ValueError(
                f"its loader's position {start:,} with {length:,} chunks is outside of the text's "
                f"{len(self.stream):,} tokens"
            )
        return start, length

    def _restart(self, epoch: int) -> None:
        self._epoch, self._cursor, self._deck = epoch, 0, None
        self._pending, self._rests = [], []
        self._consumed = epoch * self.chunks
        if self.carry_chunks:
            self._rows = [_BatchRow(*self._deal()) for _ in self._rows]
            self._stagger()


def _count(state: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = state.get(key, default)
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise ValueError(f"its loader's {key} is not a whole number of 0 to {LARGEST_COUNT:,}")
    return value


def _list(state: Mapping[str, Any], key: str) -> list[Any]:
    value = state.get(key)
    if not isinstance(value, list):
        raise ValueError(f"its loader's {key} are missing")
    return value


CHUNKS_A_ROW = 16
"""The fewest chunks that a row of an evaluation reads: the first of them begins with an empty state."""


class EvaluationLoader:
    """The same batches every time: the stream in as many equal parts as rows, each read in order.

    Every token of the stream except the first is predicted once, unless `batches` is reached before: then
    each row reads the beginning of its part. Targets that are missing at the end of a row are -100.

    Attributes:
        rows: B, at most `batch_size`, and few enough that a row has 16 chunks to read.
        batches: how many batches of (B, T) iterating yields.
        share: the share of the stream that is read.
    """

    def __init__(
        self,
        stream: Stream,
        eot: int,
        batch_size: int,
        block_size: int,
        batches: int | None = None,
        *,
        carried: bool = True,
        share: Callable[[int], slice] | None = None,
    ) -> None:
        """Without `carried` every chunk begins with an empty state, as models with a window are evaluated.

        `share` says which rows are read here, if other ranks read the rest.
        """
        if len(stream) < 2:
            raise UserError(f"the text to evaluate has {len(stream)} tokens; at least 2 are needed")
        self.stream = stream
        self.eot = eot
        self.block_size = block_size
        self.carried = carried
        chunks = -(-(len(stream) - 1) // block_size)
        self.rows = min(batch_size, max(1, chunks // CHUNKS_A_ROW) if carried else chunks)
        self._bounds = np.arange(self.rows + 1) * chunks // self.rows
        whole = int(np.diff(self._bounds).max())
        self.batches = whole if batches is None else min(batches, whole)
        read = np.minimum(np.diff(self._bounds), self.batches).sum()
        self.share = float(read / self._bounds[-1])
        if share is not None:
            mine = share(self.rows)
            self._bounds = self._bounds[mine.start : mine.stop + 1]
            self.rows = mine.stop - mine.start

    def __len__(self) -> int:
        return self.batches

    def target_positions(self, batch: int) -> Int64:
        """Where in the stream the first target of each row of a batch is, (B,)."""
        return (self._bounds[:-1] + batch) * self.block_size + 1

    def __iter__(self) -> Iterator[Batch]:
        last = len(self.stream) - 1
        for batch in range(self.batches):
            x = np.full((self.rows, self.block_size), self.eot, np.int64)
            y = np.full((self.rows, self.block_size), IGNORE, np.int64)
            for row in range(self.rows):
                chunk = self._bounds[row] + batch
                start = int(chunk) * self.block_size
                count = min(self.block_size, last - start) if chunk < self._bounds[row + 1] else 0
                if count > 0:
                    tokens = self.stream.gather(np.array([start]), count + 1)[0]
                    x[row, :count], y[row, :count] = tokens[:-1], tokens[1:]
            doc_start = x == self.eot
            doc_start[:, 0] |= batch == 0 or not self.carried
            yield Batch(x, y, doc_start)


def make_batch(stream: Stream, eot: int, starts: Int64, jumped: Bool, block_size: int) -> Batch:
    """Read chunks at `starts` (B,) into x, y and doc_start (B, T)."""
    window = stream.gather(starts, block_size + 1).astype(np.int64)
    x, y = window[:, :-1], window[:, 1:]
    doc_start = x == eot
    doc_start[:, 0] |= jumped
    return Batch(np.ascontiguousarray(x), np.ascontiguousarray(y), doc_start)
