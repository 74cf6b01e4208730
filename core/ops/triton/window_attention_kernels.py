"""Triton kernels of `window_attention.py`; its docstring says how they work.

Key positions are counted from the first key of the cache, which holds `past`; the chunk's keys follow. Blocks
of keys are aligned so that one begins at `past`: each lies in the cache or in the chunk, and the first may
begin before position 0. Both are read in place.

Scores and `logsumexp` are in powers of two. `delta` is the sum over channels of grad_out times out, as in
arXiv 2205.14135. Strides are (batch, head, row); channels are contiguous. EVEN: a head has E
channels, so that no column needs a mask. FULL: the queries are whole blocks, so that no row needs one.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from core.ops.triton.rotary import rotate, rotation


@triton.jit
def _visible(distance, seen):
    """True if 0 <= distance <= seen, in one comparison: as unsigned numbers, negative ones are huge."""
    return distance.to(tl.uint32, bitcast=True) <= seen.to(tl.uint32, bitcast=True)


@triton.jit
def _head(pointer, batch, head, strides):
    """The first element of a head of a batch row."""
    return pointer + batch * strides[0] + head * strides[1]


@triton.jit
def _inside(indices, count):
    """True if 0 <= indices < count."""
    return indices.to(tl.uint32, bitcast=True) < count


@triton.jit
def _tile(
    pointer, rows, columns, row_stride, row_count, width, EVEN: tl.constexpr, FULL: tl.constexpr = False
):
    """Rows and columns of a matrix, zeros outside. The pointer points at row 0."""
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
def _key_tile(pointer, positions, columns, row_stride, count, width, EVEN: tl.constexpr):
    """Keys or values at `positions`, zeros outside. The pointer points at position 0."""
    mask = _inside(positions, count)[:, None]
    if not EVEN:
        mask &= (columns < width)[None, :]
    return tl.load(pointer + positions[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _line(pointer, rows, row_count, FULL: tl.constexpr):
    """One number per row, zeros outside."""
    if FULL:
        return tl.load(pointer + rows)
    return tl.load(pointer + rows, mask=rows < row_count, other=0)


@triton.jit
def _put(pointer, value, rows, columns, row_stride, row_count, width):
    """Write the rows and columns that lie inside a matrix; rows may be negative."""
    mask = _inside(rows, row_count)[:, None] & (columns[None, :] < width)
    target = pointer + rows[:, None] * row_stride + columns[None, :]
    tl.store(target, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _put_rotated_back(
    pointer, value, cos, sin, rows, columns, row_stride, row_count, angles, width,
    E: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Like `_put`, for a gradient that is first rotated by -angle. Row 0's angles are at row `angles`."""
    half = width // 2
    column = tl.arange(0, E // 2)
    mask = _inside(rows, row_count)[:, None] & (column[None, :] < half)
    row_cos, row_sin = rotation(cos, sin, angles + rows, half, column, mask, True)
    into = pointer + rows[:, None] * row_stride + column[None, :]
    if EVEN:
        first, second = value.reshape((value.shape[0], 2, E // 2)).permute(0, 2, 1).split()
    else:
        # The head's halves aren't the tile's: they are read back from memory once every thread has written
        # its part.
        _put(pointer, value, rows, columns, row_stride, row_count, width)
        tl.debug_barrier()
        first = tl.load(into, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(into + half, mask=mask, other=0.0).to(tl.float32)
    # Rotating back is rotating the swapped pair.
    second, first = rotate(second, first, row_cos, row_sin)
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
    """Where the keys that any query of a block sees begin and end, and those that all of its queries see.

    The beginning follows from the window alone, without waiting for `visible_length`. With SKIPS it is read,
    to skip keys of other documents.
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
    q, k, v, old_k, old_v, visible_length, out, logsumexp, length, past, heads, width, window, scale,
    q_strides, k_strides, cache_strides, out_strides,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, SKIPS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head over all keys that any of them sees."""
    block, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    position = rows + past
    visible_length += batch * length
    first, stop, whole, open_end = _keys_of(block, visible_length, length, past, window, QUERIES, KEYS, SKIPS)
    fresh = batch * k_strides[0] + head * k_strides[1] - (batch * 0 + past) * k_strides[2]
    cached = batch * cache_strides[0] + head * cache_strides[1]
    tile_q = _tile(_head(q, batch, head, q_strides), rows, columns, q_strides[2], length, width, EVEN)
    seen = _line(visible_length, rows, length, False).to(tl.int32)
    # A row that has seen no key yet: lower than any score, but finite, so that it can be subtracted from
    # itself.
    top = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        some_k = tl.where(start < past, old_k + cached, k + fresh)
        some_v = tl.where(start < past, old_v + cached, v + fresh)
        tile_k = _key_tile(some_k, at, columns, k_strides[2], past + length, width, EVEN)
        scores = tl.dot(tile_q, tl.trans(tile_k))
        if start < whole or start + KEYS > open_end:
            scores = tl.where(_visible(position[:, None] - at[None, :], seen[:, None]), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores * scale - (higher * scale)[:, None])
        shrink = tl.exp2((top - higher) * scale)
        total = total * shrink + tl.sum(weights, 1)
        tile_v = _key_tile(some_v, at, columns, k_strides[2], past + length, width, EVEN)
        mixed = tl.dot(weights.to(tile_v.dtype), tile_v, mixed * shrink[:, None])
        top = higher
    mixed *= (1.0 / total)[:, None]
    out = _head(out, batch, head, out_strides)
    _put(out, mixed, rows, columns, out_strides[2], length, width)
    line = (batch * heads + head) * length + rows
    tl.store(logsumexp + line, top * scale + tl.log2(total), mask=rows < length)


@triton.jit
def _queries(
    q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, delta, grad_q, cos, sin,
    length, past, heads, width, window, scale,
    q_strides, k_strides, cache_strides,
    out_strides, grad_out_strides, grad_strides, block,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, ROTATED: tl.constexpr,
    SKIPS: tl.constexpr, KEEPS: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries; with KEEPS, also stores their delta, the sums of grad_out times out.

    ROTATED: the queries were rotated by cos and sin, and dq is the gradient before the rotation.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    rows = block * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, E)
    position = rows + past
    visible_length += batch * length
    first, stop, whole, open_end = _keys_of(block, visible_length, length, past, window, QUERIES, KEYS, SKIPS)
    fresh = batch * k_strides[0] + head * k_strides[1] - (batch * 0 + past) * k_strides[2]
    cached = batch * cache_strides[0] + head * cache_strides[1]
    tile_q = _tile(_head(q, batch, head, q_strides), rows, columns, q_strides[2], length, width, EVEN)
    out = _head(out, batch, head, out_strides)
    tile_o = _tile(out, rows, columns, out_strides[2], length, width, EVEN)
    grad_out = _head(grad_out, batch, head, grad_out_strides)
    tile_g = _tile(grad_out, rows, columns, grad_out_strides[2], length, width, EVEN)
    seen = _line(visible_length, rows, length, False).to(tl.int32)
    line = (batch * heads + head) * length + rows
    row_logsumexp = tl.load(logsumexp + line, mask=rows < length, other=0.0)
    row_delta = tl.sum(tile_o.to(tl.float32) * tile_g.to(tl.float32), 1)
    if KEEPS:
        tl.store(delta + line, row_delta, mask=rows < length)
    grad = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, stop, KEYS):
        at = start + tl.arange(0, KEYS)
        some_k = tl.where(start < past, old_k + cached, k + fresh)
        some_v = tl.where(start < past, old_v + cached, v + fresh)
        tile_k = _key_tile(some_k, at, columns, k_strides[2], past + length, width, EVEN)
        tile_v = _key_tile(some_v, at, columns, k_strides[2], past + length, width, EVEN)
        scores = tl.dot(tile_q, tl.trans(tile_k))
        change = tl.dot(tile_g, tl.trans(tile_v))
        if start < whole or start + KEYS > open_end:
            scores = tl.where(_visible(position[:, None] - at[None, :], seen[:, None]), scores, float("-inf"))
        change = tl.exp2(scores * scale - row_logsumexp[:, None]) * (change - row_delta[:, None])
        grad = tl.dot(change.to(tile_k.dtype), tile_k, grad)
    grad *= scale * 0.6931471805599453
    grad_q = _head(grad_q, batch, head, grad_strides)
    if ROTATED:
        _put_rotated_back(
            grad_q, grad, cos, sin, rows, columns, grad_strides[2], length, batch * length, width, E, EVEN
        )
    else:
        _put(grad_q, grad, rows, columns, grad_strides[2], length, width)


@triton.jit
def _queries_of(begin, visible_length, length, past, window, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Where the queries that see any of KEYS keys from `begin` on begin and end, and those that see all."""
    first = tl.maximum(begin - past, 0) // QUERIES
    blocks = tl.cdiv(tl.minimum(begin + KEYS - 1 + window - past, length), QUERIES)
    # What a query can't see, no later one sees either, so it is enough to count blocks.
    counted = 0
    for base in range(first, blocks, 32):
        block = base + tl.arange(0, 32)
        head = block * QUERIES
        tail = tl.minimum(head + QUERIES, length) - 1
        start = head + past - tl.load(visible_length + head, mask=block < blocks, other=0).to(tl.int32)
        last_start = tail + past - tl.load(visible_length + tail, mask=block < blocks, other=0).to(tl.int32)
        some = (block < blocks) & (start < begin + KEYS)
        counted += tl.sum(tl.where(some, 1, 0) + tl.where(some & (last_start <= begin), 1 << 16, 0), 0)
    first *= QUERIES
    return (
        first,
        first + (counted & 0xFFFF) * QUERIES,
        begin + KEYS - 1 - past,
        first + (counted >> 16) * QUERIES,
    )


@triton.jit
def _keys(
    q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, delta, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_strides, k_strides, cache_strides,
    out_strides, grad_out_strides, grad_strides, block,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, ROTATED: tl.constexpr,
    FULL: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys; delta is read if KEPT, otherwise computed again.

    `learning` is how many of the cache's keys have gradients: all of them, in front of the chunk's, or none.
    ROTATED is as in `_queries`, and then `learning` is 0.
    """
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    begin = past + (block - tl.cdiv(learning, KEYS)) * KEYS
    at = begin + tl.arange(0, KEYS)
    columns = tl.arange(0, E)
    visible_length += batch * length
    first, stop, whole, open_end = _queries_of(begin, visible_length, length, past, window, QUERIES, KEYS)
    q = _head(q, batch, head, q_strides)
    out = _head(out, batch, head, out_strides)
    grad_out = _head(grad_out, batch, head, grad_out_strides)
    fresh = batch * k_strides[0] + head * k_strides[1] - (batch * 0 + past) * k_strides[2]
    cached = batch * cache_strides[0] + head * cache_strides[1]
    some_k = tl.where(begin < past, old_k + cached, k + fresh)
    some_v = tl.where(begin < past, old_v + cached, v + fresh)
    tile_k = _key_tile(some_k, at, columns, k_strides[2], past + length, width, EVEN)
    tile_v = _key_tile(some_v, at, columns, k_strides[2], past + length, width, EVEN)
    logsumexp += (batch * heads + head) * length
    delta += (batch * heads + head) * length
    sum_k = tl.zeros((KEYS, E), tl.float32)
    sum_v = tl.zeros((KEYS, E), tl.float32)
    for start in range(first, stop, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        tile_q = _tile(q, rows, columns, q_strides[2], length, width, EVEN, FULL)
        tile_g = _tile(grad_out, rows, columns, grad_out_strides[2], length, width, EVEN, FULL)
        row_logsumexp = _line(logsumexp, rows, length, FULL)
        if KEPT:
            row_delta = _line(delta, rows, length, FULL)
        else:
            tile_o = _tile(out, rows, columns, out_strides[2], length, width, EVEN, FULL)
            row_delta = tl.sum(tile_o.to(tl.float32) * tile_g.to(tl.float32), 1)
        scores = tl.dot(tile_k, tl.trans(tile_q))
        change = tl.dot(tile_v, tl.trans(tile_g))
        if start < whole or start >= open_end:
            seen = _line(visible_length, rows, length, FULL).to(tl.int32)
            visible = _visible((rows + past)[None, :] - at[:, None], seen[None, :])
            scores = tl.where(visible, scores, float("-inf"))
        weights = tl.exp2(scores * scale - row_logsumexp[None, :])
        change = weights * (change - row_delta[None, :])
        sum_v = tl.dot(weights.to(tile_g.dtype), tile_g, sum_v)
        sum_k = tl.dot(change.to(tile_q.dtype), tile_q, sum_k)
    into = batch * grad_strides[0] + head * grad_strides[1]
    rows = at - past + learning
    _put(grad_v + into, sum_v, rows, columns, grad_strides[2], learning + length, width)
    grad_k += into
    sum_k *= scale * 0.6931471805599453
    if ROTATED:
        _put_rotated_back(
            grad_k, sum_k, cos, sin, rows, columns, grad_strides[2], length, batch * length, width, E, EVEN
        )
    else:
        _put(grad_k, sum_k, rows, columns, grad_strides[2], learning + length, width)


@triton.jit
def attention_queries_kernel(
    q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, delta, grad_q, cos, sin,
    length, past, heads, width, window, scale,
    q_strides, k_strides, cache_strides,
    out_strides, grad_out_strides, grad_strides,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, ROTATED: tl.constexpr,
    SKIPS: tl.constexpr,
):  # fmt: skip
    """dq, and the delta for `attention_keys_kernel`."""
    _queries(
        q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, delta, grad_q, cos, sin,
        length, past, heads, width, window, scale,
        q_strides, k_strides, cache_strides,
        out_strides, grad_out_strides, grad_strides, tl.program_id(0),
        E, QUERIES, KEYS, EVEN, ROTATED, SKIPS, True,
    )  # fmt: skip


@triton.jit
def attention_keys_kernel(
    q, k, v, old_k, old_v, visible_length, grad_out, logsumexp, delta, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_strides, k_strides, cache_strides,
    grad_out_strides, grad_strides,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, EVEN: tl.constexpr, ROTATED: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """dk and dv."""
    _keys(
        q, k, v, old_k, old_v, visible_length, grad_out, grad_out, logsumexp, delta, grad_k, grad_v, cos, sin,
        length, past, heads, width, window, scale, learning,
        q_strides, k_strides, cache_strides,
        grad_out_strides, grad_out_strides, grad_strides, tl.program_id(0),
        E, QUERIES, KEYS, EVEN, ROTATED, FULL, True,
    )  # fmt: skip


@triton.jit
def attention_backward_kernel(
    q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, grad_q, grad_k, grad_v, cos, sin,
    length, past, heads, width, window, scale, learning,
    q_strides, k_strides, cache_strides,
    out_strides, grad_out_strides, grad_q_strides, grad_k_strides,
    E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, QUERIES_AT_ONCE: tl.constexpr,
    KEYS_AT_ONCE: tl.constexpr, EVEN: tl.constexpr, ROTATED: tl.constexpr, SKIPS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """The backward of a short text in one launch.

    The first programs compute dk and dv of KEYS keys each, the others dq of QUERIES queries each.
    """
    blocks = tl.cdiv(learning, KEYS) + tl.cdiv(length, KEYS)
    if tl.program_id(0) < blocks:
        _keys(
            q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, logsumexp, grad_k, grad_v,
            cos, sin, length, past, heads, width, window, scale, learning,
            q_strides, k_strides, cache_strides,
            out_strides, grad_out_strides, grad_k_strides, tl.program_id(0),
            E, QUERIES_AT_ONCE, KEYS, EVEN, ROTATED, FULL, False,
        )  # fmt: skip
    else:
        _queries(
            q, k, v, old_k, old_v, visible_length, out, grad_out, logsumexp, logsumexp, grad_q, cos, sin,
            length, past, heads, width, window, scale,
            q_strides, k_strides, cache_strides,
            out_strides, grad_out_strides, grad_q_strides, tl.program_id(0) - blocks,
            E, QUERIES, KEYS_AT_ONCE, EVEN, ROTATED, SKIPS, False,
        )  # fmt: skip
