"""Kernels that sample the next token on the device, as `core.generation.sampler` does on the host.

Every filter keeps the first tokens in the order of their logits: `top_k` counts them, `top_p` adds up their
probabilities, `min_p` looks at each one. So nothing has to be sorted: a radix search finds the last token
that is kept. It searches distances from the best logit, whose bits have the order of the numbers. Every pass
makes a histogram over the next few of their 31 bits, of the tokens and the probability at each value, and so
finds these bits of the last kept distance:

    bits 30..24    23..18    17..12    11..6     5..0
    pass 0         pass 1    pass 2    pass 3    pass 4     -> the threshold, and how many tokens tie with it

Probabilities are added as integers, so that the order of addition makes no difference. Tokens with the same
logit are ordered by id. A search is a job: 0 counts to `top_k`, 1 adds up to `top_p`, 2 counts the most
probable tokens to report, before the repetition penalty.

The batch row is the last grid axis. `numbers` (8,) float32 holds the factor of the logits, the factor of the
noise, the repetition penalty, `min_p` and `top_p`; `limits` (4,) int64 holds `top_k`, whether job 0 ran
before job 1, how many tokens to report, and the length of a record.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

PIECE = 256
"""Tokens per program."""
PASSES = ((24, 7), (18, 6), (12, 6), (6, 6), (0, 6))
"""For each pass of a search: the lowest bit that it finds, and how many bits."""
JOBS = 3
HISTOGRAM = tl.constexpr(256)
"""Numbers in a pass's histogram: for each value of its bits the tokens, then their probabilities."""
JOB_HISTOGRAMS = tl.constexpr(len(PASSES) * 256)
JOB_STATES = tl.constexpr(len(PASSES) * 4)
TIES = tl.constexpr(64)
LAST = tl.constexpr(len(PASSES) - 1)
ONE = tl.constexpr(float(1 << 40))
"""The best token's probability, as an integer."""


@triton.jit
def _logits(logits, seen, numbers, batch, column, vocab_size):
    """The model's logits of some tokens, and the logits after the repetition penalty; -inf for NaN."""
    real = column < vocab_size
    raw = tl.load(logits + batch * vocab_size + column, mask=real, other=float("-inf"))
    raw = tl.where(raw != raw, float("-inf"), raw)
    again = tl.load(seen + batch * vocab_size + column, mask=real, other=0) != 0
    penalty = tl.load(numbers + 2)
    less = tl.where(raw > 0, tl.div_rn(raw, tl.zeros_like(raw) + penalty), raw * penalty)
    return raw, tl.where(again, less, raw)


@triton.jit
def _peak(peaks, batch, pieces, PIECES: tl.constexpr):
    """The highest logit."""
    i = tl.arange(0, PIECES)
    return tl.max(tl.load(peaks + batch * pieces + i, mask=i < pieces, other=float("-inf")), 0)


@triton.jit
def _distance(peak, value):
    """The distance below the best logit; infinite for impossible tokens."""
    return tl.where(value == float("-inf"), float("inf"), peak - value)


@triton.jit
def _weight(distance, numbers):
    """The probability relative to the best token's after temperature, as an integer; 0 below min_p."""
    share = tl.exp(-distance * tl.load(numbers))
    return tl.where(share >= tl.load(numbers + 3), share * ONE, 0.0).to(tl.int64)


@triton.jit
def _next_digit(histogram, digits, by_weight, prefix, counted, weighed, target):
    """The next bits of the last kept token's distance, and the total before distances with these bits."""
    d = tl.arange(0, 128)
    counts, weights = tl.load(histogram + d), tl.load(histogram + 128 + d)
    reached = tl.where(by_weight, weighed, counted) + tl.cumsum(tl.where(by_weight, weights, counts), 0)
    digit = tl.minimum(tl.sum((reached < target).to(tl.int64), 0), digits - 1)
    counted += tl.sum(tl.where(d < digit, counts, 0), 0)
    weighed += tl.sum(tl.where(d < digit, weights, 0), 0)
    ties = tl.sum(tl.where(d == digit, counts, 0), 0)
    return prefix * digits + digit, counted, weighed, digit, ties


@triton.jit
def _threshold(histograms, states, numbers, job):
    """A job's result: the last kept distance's bits, how many tokens at it are kept, the total weight."""
    state = states + job * JOB_STATES + LAST * 4
    target = tl.load(state + 3)
    key, counted, weighed, digit, ties = _next_digit(
        histograms + job * JOB_HISTOGRAMS + LAST * HISTOGRAM, 64, job == 1,
        tl.load(state), tl.load(state + 1), tl.load(state + 2), target,
    )  # fmt: skip
    each = _weight(key.to(tl.int32).to(tl.float32, bitcast=True), numbers)
    by_weight = (target - weighed + tl.maximum(each, 1) - 1) // tl.maximum(each, 1)
    quota = tl.minimum(tl.where(job == 1, by_weight, target - counted), ties)
    return key, quota, digit, weighed + quota * each


@triton.jit
def _selected(key, real, histograms, states, ties, numbers, job, piece, pieces, PIECES: tl.constexpr):
    """Which tokens of a piece a job keeps, by the bits of their distances."""
    last, quota, digit, _ = _threshold(histograms, states, numbers, job)
    i = tl.arange(0, PIECES)
    earlier = tl.load(ties + (job * pieces + i) * TIES + digit, mask=i < piece, other=0)
    tied = real & (key == last)
    rank = tl.sum(earlier, 0) + tl.cumsum(tied.to(tl.int32), 0)
    return (real & (key < last)) | (tied & (rank <= quota))


@triton.jit
def peak_kernel(
    logits, seen, numbers, peaks, histograms, collected, vocab_size, pieces, batch_size, size,
    PIECE: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    """The highest logit of every piece, with and without the penalty.

    Also empties the searches' histograms.
    """
    piece, batch = tl.program_id(0), tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    raw, value = _logits(logits, seen, numbers, batch, column, vocab_size)
    tl.store(peaks + batch * pieces + piece, tl.max(value, 0))
    tl.store(peaks + (batch_size + batch) * pieces + piece, tl.max(raw, 0))
    share = tl.cdiv(size, pieces)
    i = tl.arange(0, CLEAR)
    at = piece * share + i
    nothing = tl.zeros([CLEAR], tl.int64)
    tl.store(histograms + batch * size + at, nothing, mask=(i < share) & (at < size))
    tl.store(collected + batch, 0, mask=piece == 0)


@triton.jit(do_not_specialize=["first_job", "next_job", "number", "shift"])
def histogram_kernel(
    logits, seen, numbers, limits, peaks, histograms, states, ties, vocab_size, pieces, batch_size,
    first_job, next_job, number, shift,
    PIECE: tl.constexpr, PIECES: tl.constexpr, BITS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """One pass of some jobs: find bits from the previous pass, then count and weigh distances that match."""
    piece, batch = tl.program_id(0), tl.program_id(2)
    job = first_job + tl.program_id(1) * next_job
    histograms += batch * JOB_HISTOGRAMS * 3
    states += batch * JOB_STATES * 3
    histogram = histograms + job * JOB_HISTOGRAMS + number * HISTOGRAM
    prefix = batch.to(tl.int64) * 0
    if not FIRST:
        state = states + job * JOB_STATES + (number - 1) * 4
        begun = number > 1
        prefix = tl.load(state, mask=begun, other=0)
        counted = tl.load(state + 1, mask=begun, other=0)
        weighed = tl.load(state + 2, mask=begun, other=0)
        target = tl.load(state + 3, mask=begun, other=0)
        if not begun:
            target = tl.load(limits + job)
            if job == 1:
                if target > 0:
                    _, _, _, total = _threshold(histograms, states, numbers, 0)
                else:
                    total = tl.sum(tl.load(histogram - HISTOGRAM + 128 + tl.arange(0, 128)), 0)
                wanted = total.to(tl.float64) * tl.load(numbers + 4).to(tl.float64)
                target = wanted.to(tl.int64)
                target = tl.maximum(target + (target.to(tl.float64) < wanted).to(tl.int64), 1)
        digits = tl.where(begun, 64, 128)
        prefix, counted, weighed, _, _ = _next_digit(
            histogram - HISTOGRAM, digits, job == 1, prefix, counted, weighed, target
        )
        if piece == 0:
            tl.store(state + 4, prefix)
            tl.store(state + 5, counted)
            tl.store(state + 6, weighed)
            tl.store(state + 7, target)
    column = piece * PIECE + tl.arange(0, PIECE)
    raw, value = _logits(logits, seen, numbers, batch, column, vocab_size)
    peaks += tl.where(job == 2, batch_size * pieces, 0)
    distance = _distance(_peak(peaks, batch, pieces, PIECES), tl.where(job == 2, raw, value))
    key = distance.to(tl.int32, bitcast=True)
    d = tl.arange(0, 1 << BITS)
    inside = (column < vocab_size) & ((key >> (shift + BITS)) == prefix)
    one = (((key >> shift) & ((1 << BITS) - 1))[:, None] == d[None, :]) & inside[:, None]
    counts = tl.sum(one.to(tl.int32), 0)
    weights = tl.sum(tl.where(one, _weight(distance, numbers)[:, None], 0), 0)
    tl.atomic_add(histogram + d, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
    tl.atomic_add(histogram + 128 + d, weights, mask=weights > 0, sem="relaxed")
    if not FIRST:  # the last pass stores how many tied tokens each piece has
        tl.store(ties + ((batch * 3 + job) * pieces + piece) * TIES + d, counts)


@triton.jit
def sample_kernel(
    logits, seen, numbers, seeds, sampled, peaks, histograms, states, ties, best, best_token, vocab_size,
    pieces, job,
    PIECE: tl.constexpr, PIECES: tl.constexpr, FILTERED: tl.constexpr, SEARCHED: tl.constexpr,
):  # fmt: skip
    """The best of a piece's kept logits after adding Gumbel noise, which samples from their softmax.

    `best` (4, batch_size, pieces) receives its score and logit, then the highest logit and the sum of all
    exponentials relative to it, NaN if a logit isn't a number.
    """
    piece, batch = tl.program_id(0), tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    real = column < vocab_size
    raw, value = _logits(logits, seen, numbers, batch, column, vocab_size)
    counter = tl.load(sampled + batch).to(tl.int32) + column * 0
    bits, _, _, _ = tl.philox(tl.load(seeds + batch), column, counter, column * 0, column * 0)
    # An exponentially distributed number. The winner's is small, and this keeps all digits of small numbers.
    share = (bits >> 8).to(tl.float32) * 5.9604645e-08
    fine = (bits.to(tl.float32) + 0.5) * 2.3283064e-10
    series = fine * (1.0 + fine * (0.5 + fine * 0.33333333))
    noise = -tl.log(tl.where(fine < 0.001, series, -tl.log(1.0 - share))) * tl.load(numbers + 1)
    if FILTERED:
        distance = _distance(_peak(peaks, batch, pieces, PIECES), value)
        scaled = -distance * tl.load(numbers)
        kept = real & (tl.exp(scaled) >= tl.load(numbers + 3))
        if SEARCHED:
            kept = kept & _selected(
                distance.to(tl.int32, bitcast=True), real, histograms + batch * JOB_HISTOGRAMS * 3,
                states + batch * JOB_STATES * 3, ties + batch * 3 * pieces * TIES, numbers, job, piece,
                pieces, PIECES,
            )  # fmt: skip
        score = tl.where(kept, scaled + noise, float("-inf"))
    else:
        score = tl.where(real, value * tl.load(numbers) + noise, float("-inf"))
    at = piece * PIECE + tl.argmax(score, 0)
    top = tl.max(raw, 0)
    total = tl.sum(tl.where(raw == float("-inf"), 0.0, tl.exp(raw - top)), 0)
    untouched = tl.load(logits + batch * vocab_size + column, mask=real, other=float("-inf"))
    wrong = tl.max(((untouched != untouched) | (untouched == float("inf"))).to(tl.int32), 0)
    total = tl.where(wrong > 0, float("nan"), total)
    row, plane = best + batch * pieces + piece, tl.num_programs(1) * pieces
    tl.store(row, tl.max(score, 0))
    tl.store(row + plane, tl.max(tl.where(column == at, raw, float("-inf")), 0))
    tl.store(row + 2 * plane, top)
    tl.store(row + 3 * plane, total)
    tl.store(best_token + batch * pieces + piece, at)


@triton.jit
def collect_kernel(
    logits, seen, numbers, peaks, histograms, states, ties, collected, ids, values, vocab_size, pieces,
    batch_size, room,
    PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Store the most probable tokens and their logits, in any order."""
    piece, batch = tl.program_id(0), tl.program_id(1)
    column = piece * PIECE + tl.arange(0, PIECE)
    real = column < vocab_size
    raw, _ = _logits(logits, seen, numbers, batch, column, vocab_size)
    distance = _distance(_peak(peaks + batch_size * pieces, batch, pieces, PIECES), raw)
    kept = _selected(
        distance.to(tl.int32, bitcast=True), real, histograms + batch * JOB_HISTOGRAMS * 3,
        states + batch * JOB_STATES * 3, ties + batch * 3 * pieces * TIES, numbers, 2, piece, pieces, PIECES,
    )  # fmt: skip
    count = tl.sum(kept.to(tl.int32), 0)
    if count > 0:
        start = tl.atomic_add(collected + batch, count, sem="relaxed")
        at = start + tl.cumsum(kept.to(tl.int32), 0) - 1
        kept = kept & (at < room)
        tl.store(ids + batch * room + at, column, mask=kept)
        tl.store(values + batch * room + at, raw, mask=kept)


@triton.jit
def record_kernel(
    best, best_token, limits, tokens, seen, sampled, next_record, records, ids, values, vocab_size, pieces,
    room, size,
    PIECES: tl.constexpr, ROOM: tl.constexpr, ALTERNATIVES: tl.constexpr,
):  # fmt: skip
    """The best token of all pieces is sampled, and recorded with the model's own probability.

    A record is int32: the token, its probability's bits, whether the logits were finite, the ids of the most
    probable tokens, and the bits of their probabilities.
    """
    batch = tl.program_id(0)
    i = tl.arange(0, PIECES)
    row, plane, mask = best + batch * pieces + i, tl.num_programs(0) * pieces, i < pieces
    score = tl.load(row, mask=mask, other=float("-inf"))
    own = tl.load(row + plane, mask=mask, other=float("-inf"))
    tops = tl.load(row + 2 * plane, mask=mask, other=float("-inf"))
    sums = tl.load(row + 3 * plane, mask=mask, other=0.0)
    tokens_of_pieces = tl.load(best_token + batch * pieces + i, mask=mask, other=0)
    winner = tl.argmax(score, 0)
    token = tl.max(tl.where(i == winner, tokens_of_pieces, 0), 0)
    logit = tl.max(tl.where(i == winner, own, float("-inf")), 0)
    wrong = tl.max((sums != sums).to(tl.int32), 0)
    top = tl.max(tops, 0)
    finite = (wrong == 0) & (top > float("-inf"))
    total = tl.sum(tl.where(tops == float("-inf"), 0.0, sums * tl.exp(tops - top)), 0)
    length = tl.load(limits + 3)
    index = tl.load(next_record + batch)
    record = records + batch * size + index * length
    probability = tl.exp(logit - top) / total
    tl.store(record, token)
    tl.store(record + 1, probability.to(tl.int32, bitcast=True))
    tl.store(record + 2, finite.to(tl.int32))
    tl.store(tokens + batch, token.to(tl.int64))
    tl.store(seen + batch * vocab_size + token, 1)
    tl.store(sampled + batch, tl.load(sampled + batch) + 1)
    tl.store(next_record + batch, index + 1)
    if ALTERNATIVES:
        count = tl.load(limits + 2)
        a = tl.arange(0, ROOM)
        mask = a < count
        value = tl.load(values + batch * room + a, mask=mask, other=0.0)
        shares = tl.exp(value - top) / total
        tl.store(record + 3 + a, tl.load(ids + batch * room + a, mask=mask, other=0), mask=mask)
        tl.store(record + 3 + count + a, shares.to(tl.int32, bitcast=True), mask=mask)
