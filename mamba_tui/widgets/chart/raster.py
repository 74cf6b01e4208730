"""From numbers to braille dots: the arithmetic of the chart, without any widget.

Each cell of the terminal is 2 x 4 dots. A series is reduced to one vertical span of dots per dot column (its
smallest and largest value there, joined to its neighbors), so that beyond one pass over the points, the time
to draw doesn't depend on their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Weight of dot (row, column) of a cell in the braille block, U+2800.
BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.int64)
# Dots of each braille cell.
BITS = np.array([bin(code).count("1") for code in range(256)], dtype=np.int64)


def as_floats(values: object) -> Floats:
    """Any sequence as float64 with infinities turned to NaN, so that they leave a gap."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size and not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array, np.nan)
    return array


def to_log(values: Floats) -> Floats:
    """log10, with NaN where it is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)


def visible_slice(x: Floats, x0: float, x1: float) -> slice:
    """The points within [x0, x1] and one more on each side, so that lines reach the edges."""
    low = int(np.searchsorted(x, x0, side="left"))
    high = int(np.searchsorted(x, x1, side="right"))
    return slice(max(0, low - 1), min(len(x), high + 1))


def column_extremes(x: Floats, low: Floats, high: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Smallest `low` and largest `high` among the points of each column; NaN if a column has none.

    x (n,) ascending, edges (columns + 1,) ascending. The last column includes its right edge.
    """
    columns = len(edges) - 1
    bottom = np.full(columns, np.nan)
    top = np.full(columns, np.nan)
    bounds = np.searchsorted(x, edges, side="left")
    bounds[-1] = np.searchsorted(x, edges[-1], side="right")
    begin, end = int(bounds[0]), int(bounds[-1])
    filled = np.flatnonzero(bounds[1:] > bounds[:-1])
    if filled.size:
        starts = bounds[:-1][filled] - begin
        bottom[filled] = np.fmin.reduceat(low[begin:end], starts)
        top[filled] = np.fmax.reduceat(high[begin:end], starts)
    return bottom, top


def edge_values(x: Floats, y: Floats, edges: Floats) -> Floats:
    """The line's height at each edge; NaN outside the data and beside a gap."""
    heights = np.full(len(edges), np.nan)
    if len(x) < 2:
        return heights
    right = np.searchsorted(x, edges, side="right")
    inside = (right > 0) & (right < len(x))
    after = right[inside]
    before = after - 1
    width = x[after] - x[before]
    share = np.where(width > 0, (edges[inside] - x[before]) / np.where(width > 0, width, 1.0), 0.0)
    heights[inside] = y[before] + (y[after] - y[before]) * share
    return heights


def line_spans(x: Floats, y: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Bottom and top of the line in each column, joined from column to column except at gaps."""
    bottom, top = column_extremes(x, y, y, edges)
    at_edge = edge_values(x, y, edges)
    bottom = np.fmin(bottom, np.fmin(at_edge[:-1], at_edge[1:]))
    top = np.fmax(top, np.fmax(at_edge[:-1], at_edge[1:]))
    return bottom, top


def dots(bottom: Floats, top: Floats, y0: float, y1: float, rows: int) -> Bools:
    """A (rows, columns) matrix of dots for spans in the range [y0, y1]; row 0 is the top."""
    height = y1 - y0 if y1 > y0 else 1.0
    known = ~(np.isnan(bottom) | np.isnan(top)) & (top >= y0) & (bottom <= y1)
    with np.errstate(invalid="ignore"):
        first = np.rint((y1 - np.clip(top, y0, y1)) / height * (rows - 1))
        last = np.rint((y1 - np.clip(bottom, y0, y1)) / height * (rows - 1))
    first = np.where(known, first, 1.0)
    last = np.where(known, last, 0.0)
    index = np.arange(rows)[:, None]
    mask: Bools = (index >= first[None, :]) & (index <= last[None, :])
    return mask


def braille(mask: Bools) -> Ints:
    """Pack a (4 h, 2 w) dot matrix into (h, w) braille offsets; 0 is an empty cell."""
    height, width = mask.shape[0] // 4, mask.shape[1] // 2
    cells = mask[: 4 * height, : 2 * width].reshape(height, 4, width, 2)
    packed: Ints = np.einsum("hrwc,rc->hw", cells, BRAILLE)
    return packed


def value_range(
    pieces: list[Floats], log: bool, *, ignore_outliers: bool = False
) -> tuple[float, float] | None:
    """The y range that shows all finite values, with a small margin; None if there are none."""
    finite = [piece[np.isfinite(piece)] for piece in pieces]
    finite = [piece for piece in finite if piece.size]
    if not finite:
        return None
    if ignore_outliers:
        whole = np.concatenate(finite)
        low, high = (float(value) for value in np.percentile(whole, (1, 99)))
    else:
        low = min(float(piece.min()) for piece in finite)
        high = max(float(piece.max()) for piece in finite)
    if high - low <= 1e-12 * max(1.0, abs(high), abs(low)):
        room = 0.3 if log else max(abs(high) * 0.1, 1e-9 if high else 1.0)
    else:
        room = 0.04 * (high - low)
    return low - room, high + room
