"""Triton kernels of `window_attention_triton.py`; its docstring says how they work.

A key's place counts from the first of the cache, where there are `past`; those of the chunk follow. Blocks of
keys are laid so that one begins at `past`: each lies in the cache or in the chunk, the first perhaps before
both. Both are read where they are.

Scores and their norms are in powers of two. EVEN: a head has E channels, so that no column needs a mask.
FULL: the queries are whole blocks, so that no row does.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _visible(distance, seen):
    """Where 0 <= distance <= seen, in one comparison: below zero is far above as an unsigned number."""
    return distance.to(tl.uint32, bitcast=True) <= seen.to(tl.uint32, bitcast=True)


@triton.jit
def _inside(places, count):
    """Where 0 <= places < count."""
    return places.to(tl.uint32, bitcast=True) < count


@triton.jit
def _tile(
    pointer, rows, columns, row_stride, row_count, width, EVEN: tl.constexpr, FULL: tl.constexpr = False
):
    """Rows and columns of a matrix, zeros outside. The pointer stands at row 0."""
    target = pointer + rows[:, None] * row_stride + columns[None, :]
    if FULL and EVEN:
        return tl.load(target)
    mask = (rows < row_count)[:, None] & (columns < width)[None, :]
    if FULL:
        mask = (columns < width)[None, :]
    if EVEN:
        mask = (rows < row_count)[:, None]
    return tl.load(target, mask=mask, other=0.0)


@triton.jit
def _key_tile(pointer, places, columns, row_stride, count, width, EVEN: tl.constexpr):
    """Keys or values at `places`, zeros where none are. The pointer stands at place 0."""
    mask = _inside(places, count)[:, None]
    if not EVEN:
        mask &= (columns < width)[None, :]
    return tl.load(pointer + places[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _line(pointer, rows, row_count, FULL: tl.constexpr):
    """One number a row, zeros outside."""
    if FULL:
        return tl.load(pointer + rows)
    return tl.load(pointer + rows, mask=rows < row_count, other=0)


@triton.jit
def _put(pointer, value, rows, columns, row_stride, row_count, width):
    """Write rows and columns of a matrix where there are any; a row may be below zero."""
    mask = _inside(rows, row_count)[:, None] & (columns[None, :] < width)
    target = pointer + rows[:, None] * row_stride + columns[None, :]
    tl.store(target, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _turned(first, second, cos, sin):
    """A pair of channels turned by an angle."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _angles(cos, sin, rows, half, column, mask, ROPE: tl.constexpr):
    """Cosines and sines (rows, columns) at rows of (B T, half); those of no angle without ROPE."""
    turn_cos = tl.full(mask.shape, 1.0, tl.float32)
    turn_sin = tl.zeros(mask.shape, tl.float32)
    if ROPE:
        at = rows[:, None] * half + column[None, :]
        turn_cos = tl.load(cos + at, mask=mask, other=1.0)
        turn_sin = tl.load(sin + at, mask=mask, other=0.0)
    return turn_cos, turn_sin


@triton.jit
def _put_turned(
    pointer, value, cos, sin, rows, columns, row_stride, row_count, angles, width,
    E: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write a gradient turned by -angle as `_put` does; row `angles` of cos and sin is row 0's."""
    half = width // 2
    column = tl.arange(0, E // 2)
    mask = _inside(rows, row_count)[:, None] & (column[None, :] < half)
    turn_cos, turn_sin = _angles(cos, sin, angles + rows, half, column, mask, True)
    into = pointer + rows[:, None] * row_stride + column[None, :]
    if EVEN:
        first, second = value.reshape((value.shape[0], 2, E // 2)).permute(0, 2, 1).split()
    else:
        # The halves lie across the tile's: they are found in memory, once every thread has written its part.
        _put(pointer, value, rows, columns, row_stride, row_count, width)
        tl.debug_barrier()
        first = tl.load(into, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(into + half, mask=mask, other=0.0).to(tl.float32)
    # A turn back is the turn of the pair the other way round.
    second, first = _turned(second, first, turn_cos, turn_sin)
    tl.store(into, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(into + half, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _keys_of(
    block,
    visible_length,
    length,
    past,
    window,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SKIPS: tl.constexpr,
):
    """For a block of queries: where its keys begin and end, and where those that all of it sees do.

    The beginning follows from the window alone, without waiting for `visible_length`, unless it SKIPS
    what documents hide.
    """
    row = block * QUERIES
    last = tl.minimum(row + QUERIES, length) - 1
    first = row + past - window + 1
    if SKIPS:
        first = row + past - tl.load(visible_length + row).to(tl.int32)
    whole = last + past - tl.load(visible_length + last).to(tl.int32)
    before = tl.cdiv(past, KEYS) * KEYS - past
    first = (tl.maximum(first, 0) + before) // KEYS * KEYS - before
    return first, last + past + 1, whole, row + past + 1


@triton.jit
def attention_forward_kernel(
    q, k, v, old_k, old_v, visible_length, out, norms, length, past, heads, width, window, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head, o_batch, o_head, o_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, SKIPS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head over all keys that any of them sees."""
    block, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    place = rows + past
    visible_length += batch * length
    first, stop, whole, open_end = _keys_of(block, visible_length, length, past, window, QUERIES, KEYS, SKIPS)
    fresh = batch * k_batch + head * k_head - (batch * 0 + past) * k_row
    cached = batch * p_batch + head * p_head
    tile_q = _tile(q + batch * q_batch + head * q_head, rows, columns, q_row, length, width, EVEN)
    seen = _line(visible_length, rows, length, False).to(tl.int32)
    # A row that has seen nothing yet has a top so low that any score is above it, but one that can be
    # subtracted from itself.
    top = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        some_k = tl.where(start < past, old_k + cached, k + fresh)
        some_v = tl.where(start < past, old_v + cached, v + fresh)
        tile_k = _key_tile(some_k, at, columns, k_row, past + length, width, EVEN)
        scores = tl.dot(tile_q, tl.trans(tile_k))
        if start < whole or start + KEYS > open_end:
            scores = tl.where(_visible(place[:, None] - at[None, :], seen[:, None]), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores * scale - (higher * scale)[:, None])
        shrink = tl.exp2((top - higher) * scale)
        total = total * shrink + tl.sum(weights, 1)
        tile_v = _key_tile(some_v, at, columns, k_row, past + length, width, EVEN)
        mixed = tl.dot(weights.to(tile_v.dtype), tile_v, mixed * shrink[:, None])
        top = higher
    mixed *= (1.0 / total)[:, None]
    _put(out + batch * o_batch + head * o_head, mixed, rows, columns, o_row, length, width)
    line = (batch * heads + head) * length + rows
    tl.store(norms + line, top * scale + tl.log2(total), mask=rows < length)


@triton.jit
def _queries(
    q, k, v, old_k, old_v, visible_length, out, grad_out, norms, slopes, grad_q, cos, sin,
    length, past, heads, width, window, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row, block,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, TURNS: tl.constexpr,
    SKIPS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries; if it KEEPS them, also their slopes: the sums of grad_out times out.

    TURNS: of queries that were turned by the angles of cos and sin, the gradient before that.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    place = rows + past
    visible_length += batch * length
    first, stop, whole, open_end = _keys_of(block, visible_length, length, past, window, QUERIES, KEYS, SKIPS)
    fresh = batch * k_batch + head * k_head - (batch * 0 + past) * k_row
    cached = batch * p_batch + head * p_head
    tile_q = _tile(q + batch * q_batch + head * q_head, rows, columns, q_row, length, width, EVEN)
    tile_o = _tile(out + batch * o_batch + head * o_head, rows, columns, o_row, length, width, EVEN)
    tile_g = _tile(grad_out + batch * g_batch + head * g_head, rows, columns, g_row, length, width, EVEN)
    seen = _line(visible_length, rows, length, False).to(tl.int32)
    line = (batch * heads + head) * length + rows
    norm = tl.load(norms + line, mask=rows < length, other=0.0)
    slope = tl.sum(tile_o.to(tl.float32) * tile_g.to(tl.float32), 1)
    if KEEPS:
        tl.store(slopes + line, slope, mask=rows < length)
    grad = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        some_k = tl.where(start < past, old_k + cached, k + fresh)
        some_v = tl.where(start < past, old_v + cached, v + fresh)
        tile_k = _key_tile(some_k, at, columns, k_row, past + length, width, EVEN)
        tile_v = _key_tile(some_v, at, columns, k_row, past + length, width, EVEN)
        scores = tl.dot(tile_q, tl.trans(tile_k))
        change = tl.dot(tile_g, tl.trans(tile_v))
        if start < whole or start + KEYS > open_end:
            scores = tl.where(_visible(place[:, None] - at[None, :], seen[:, None]), scores, float("-inf"))
        change = tl.exp2(scores * scale - norm[:, None]) * (change - slope[:, None])
        grad = tl.dot(change.to(tile_k.dtype), tile_k, grad)
    grad *= scale * 0.6931471805599453
    grad_q += batch * d_batch + head * d_head
    if TURNS:
        _put_turned(grad_q, grad, cos, sin, rows, columns, d_row, length, batch * length, width, E, EVEN)
    else:
        _put(grad_q, grad, rows, columns, d_row, length, width)


@triton.jit
def _queries_of(begin, visible_length, length, past, window, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """For KEYS keys from `begin` on: where the queries that see any begin and end, and where those that
    see all do."""
    first = tl.maximum(begin - past, 0) // QUERIES
    blocks = tl.cdiv(tl.minimum(begin + KEYS - 1 + window - past, length), QUERIES)
    # Nobody sees again what an earlier query no longer sees, so it is enough to count blocks.
    found = 0
    for base in range(first, blocks, 32):
        block = base + tl.arange(0, 32)
        head = block * QUERIES
        tail = tl.minimum(head + QUERIES, length) - 1
        start = head + past - tl.load(visible_length + head, mask=block < blocks, other=0).to(tl.int32)
        last_start = tail + past - tl.load(visible_length + tail, mask=block < blocks, other=0).to(tl.int32)
        some = (block < blocks) & (start < begin + KEYS)
        found += tl.sum(tl.where(some, 1, 0) + tl.where(some & (last_start <= begin), 1 << 16, 0), 0)
    first *= QUERIES
    return first, first + (found & 0xFFFF) * QUERIES, begin + KEYS - 1 - past, first + (found >> 16) * QUERIES


@triton.jit
def _keys(
    q, k, v, old_k, old_v, visible_length, out, grad_out, norms, slopes, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row, block,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, TURNS: tl.constexpr,
    FULL: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys; slopes are read if KEPT, else made again.

    `learning` is how many of the cache's keys have gradients: all, in front of the others', or none. TURNS as
    for queries, where none have.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin = past + (block - tl.cdiv(learning, KEYS)) * KEYS
    at = begin + tl.arange(0, KEYS)
    columns = tl.arange(0, E)
    visible_length += batch * length
    first, stop, whole, open_end = _queries_of(begin, visible_length, length, past, window, QUERIES, KEYS)
    q += batch * q_batch + head * q_head
    out += batch * o_batch + head * o_head
    grad_out += batch * g_batch + head * g_head
    fresh = batch * k_batch + head * k_head - (batch * 0 + past) * k_row
    cached = batch * p_batch + head * p_head
    some_k = tl.where(begin < past, old_k + cached, k + fresh)
    some_v = tl.where(begin < past, old_v + cached, v + fresh)
    tile_k = _key_tile(some_k, at, columns, k_row, past + length, width, EVEN)
    tile_v = _key_tile(some_v, at, columns, k_row, past + length, width, EVEN)
    norms += (batch * heads + head) * length
    slopes += (batch * heads + head) * length
    sum_k = tl.zeros((KEYS, E), tl.float32)
    sum_v = tl.zeros((KEYS, E), tl.float32)
    for start in range(first, stop, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        tile_q = _tile(q, rows, columns, q_row, length, width, EVEN, FULL)
        tile_g = _tile(grad_out, rows, columns, g_row, length, width, EVEN, FULL)
        norm = _line(norms, rows, length, FULL)
        if KEPT:
            slope = _line(slopes, rows, length, FULL)
        else:
            tile_o = _tile(out, rows, columns, o_row, length, width, EVEN, FULL)
            slope = tl.sum(tile_o.to(tl.float32) * tile_g.to(tl.float32), 1)
        scores = tl.dot(tile_k, tl.trans(tile_q))
        change = tl.dot(tile_v, tl.trans(tile_g))
        if start < whole or start >= open_end:
            seen = _line(visible_length, rows, length, FULL).to(tl.int32)
            visible = _visible((rows + past)[None, :] - at[:, None], seen[None, :])
            scores = tl.where(visible, scores, float("-inf"))
        weights = tl.exp2(scores * scale - norm[None, :])
        change = weights * (change - slope[None, :])
        sum_v = tl.dot(weights.to(tile_g.dtype), tile_g, sum_v)
        sum_k = tl.dot(change.to(tile_q.dtype), tile_q, sum_k)
    into = batch * d_batch + head * d_head
    rows = at - past + learning
    _put(grad_v + into, sum_v, rows, columns, d_row, learning + length, width)
    grad_k += into
    sum_k *= scale * 0.6931471805599453
    if TURNS:
        _put_turned(grad_k, sum_k, cos, sin, rows, columns, d_row, length, batch * length, width, E, EVEN)
    else:
        _put(grad_k, sum_k, rows, columns, d_row, learning + length, width)


@triton.jit
def attention_queries_kernel(
    q, k, v, old_k, old_v, visible_length, out, grad_out, norms, slopes, grad_q, cos, sin,
    length, past, heads, width, window, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, TURNS: tl.constexpr,
    SKIPS: tl.constexpr,
):  # fmt: skip
    """dq, and the slopes for `attention_keys_kernel`."""
    _queries(
        q, k, v, old_k, old_v, visible_length, out, grad_out, norms, slopes, grad_q, cos, sin,
        length, past, heads, width, window, scale,
        q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
        o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row, tl.program_id(0),
        E, QUERIES, KEYS, EVEN, TURNS, SKIPS, True,
    )  # fmt: skip


@triton.jit
def attention_keys_kernel(
    q, k, v, old_k, old_v, visible_length, grad_out, norms, slopes, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
    g_batch, g_head, g_row, d_batch, d_head, d_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, TURNS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """dk and dv."""
    _keys(
        q, k, v, old_k, old_v, visible_length, grad_out, grad_out, norms, slopes, grad_k, grad_v, cos, sin,
        length, past, heads, width, window, scale, learning,
        q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
        g_batch, g_head, g_row, g_batch, g_head, g_row, d_batch, d_head, d_row, tl.program_id(0),
        E, QUERIES, KEYS, EVEN, TURNS, FULL, True,
    )  # fmt: skip


@triton.jit
def attention_backward_kernel(
    q, k, v, old_k, old_v, visible_length, out, grad_out, norms, grad_q, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row, e_batch, e_head, e_row,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, QUERIES_AT_ONCE: tl.constexpr,
    KEYS_AT_ONCE: tl.constexpr, EVEN: tl.constexpr, TURNS: tl.constexpr, SKIPS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """dk and dv of KEYS keys by the first programs, dq of QUERIES queries by the others.

    So a short text's backward is one launch.
    """
    blocks = tl.cdiv(learning, KEYS) + tl.cdiv(length, KEYS)
    if tl.program_id(0) < blocks:
        _keys(
            q, k, v, old_k, old_v, visible_length, out, grad_out, norms, norms, grad_k, grad_v, cos, sin,
            length, past, heads, width, window, scale, learning,
            q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
            o_batch, o_head, o_row, g_batch, g_head, g_row, e_batch, e_head, e_row, tl.program_id(0),
            E, QUERIES_AT_ONCE, KEYS, EVEN, TURNS, FULL, False,
        )  # fmt: skip
    else:
        _queries(
            q, k, v, old_k, old_v, visible_length, out, grad_out, norms, norms, grad_q, cos, sin,
            length, past, heads, width, window, scale,
            q_batch, q_head, q_row, k_batch, k_head, k_row, p_batch, p_head,
            o_batch, o_head, o_row, g_batch, g_head, g_row, d_batch, d_head, d_row, tl.program_id(0) - blocks,
            E, QUERIES, KEYS_AT_ONCE, EVEN, TURNS, SKIPS, False,
        )  # fmt: skip


@triton.jit
def rotations_kernel(
    position, cos, sin, count, half, STEP: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr
):
    """Cosines and sines of position x 2 ** (STEP x i) for i below `half`, each (count, half) float32.

    Whole quarters of a turn are taken off in float64, where an angle of many turns keeps the digits of its
    last one; what is left, at most an eighth of a turn either way, float32 knows to its own last digit.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    rate = tl.exp2(column.to(tl.float64) * STEP) * 0.6366197723675814
    quarters = tl.load(position + rows, mask=rows < count, other=0).to(tl.float64)[:, None]
    quarters = quarters * rate[None, :]
    whole = tl.floor(quarters + 0.5)
    angle = ((quarters - whole) * 1.5707963267948966).to(tl.float32)
    square = angle * angle
    # The series of sine and cosine, as far as float32 sees them this close to zero.
    odd = -1.0 / 39916800 * square + 1.0 / 362880
    odd = (odd * square - 1.0 / 5040) * square + 1.0 / 120
    odd = angle + angle * square * (odd * square - 1.0 / 6)
    even = -1.0 / 3628800 * square + 1.0 / 40320
    even = (even * square - 1.0 / 720) * square + 1.0 / 24
    even = 1.0 + square * (even * square - 0.5)
    turn = whole.to(tl.int64).to(tl.int32)
    swapped = (turn & 1) == 1
    x = tl.where(swapped, odd, even)
    y = tl.where(swapped, even, odd)
    target = rows[:, None] * half + column[None, :]
    mask = (rows < count)[:, None] & (column < half)[None, :]
    tl.store(cos + target, tl.where(((turn + 1) & 2) == 2, -x, x), mask=mask)
    tl.store(sin + target, tl.where((turn & 2) == 2, -y, y), mask=mask)
