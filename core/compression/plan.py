"""How a file is cut into segments, and each segment into streams that a model reads in parallel.

Every stream begins like a document, with nothing remembered. More streams are faster and compress less: a
stream costs 8 bytes, and a few more because its first words are harder to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.compression.format import MAX_SEGMENT, MAX_STREAMS

SHORT_STREAM, STREAM = 1 << 12, 1 << 14
"""The fewest bytes of a stream, for a short text, which should not take a minute, and for a long one."""
LONG_TEXT = 24 * STREAM
CPU_STREAMS, GPU_STREAMS = 64, 512
LONGEST_STREAM = 1 << 16


@dataclass(frozen=True)
class Plan:
    """Bytes of a segment, and its number of streams."""

    segment: int
    streams: int


def plan(size: int, *, cuda: bool, streams: int | None = None) -> Plan:
    """How to cut `size` bytes; `streams` per segment, if chosen by the user.

    A CPU does two or more segments at a time, each on one core; a GPU does one with more streams.
    """
    stream = max(SHORT_STREAM, min(STREAM, STREAM * size // LONG_TEXT))
    at_once = 1 if cuda or size < 2 * stream else 2
    share = -(-size // at_once)
    if streams is None:
        streams = min(GPU_STREAMS if cuda else CPU_STREAMS, max(1, share // stream))
    streams = min(streams, MAX_STREAMS)
    longest = min(MAX_SEGMENT // 2, streams * LONGEST_STREAM)
    segments = at_once * max(1, -(-share // longest))
    return Plan(max(1, -(-size // segments)), streams)
