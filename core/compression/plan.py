"""How a file is cut: a beginning that one lane reads, then segments of many lanes.

The model reads the beginning, and every lane goes on from what it remembers of that: it knows the text's
words and names, if not the sentence it is thrown into. More lanes are faster and compress a little less.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.compression.format import MAX_LANES, MAX_SEGMENT

BEGINNING = 1 << 13
"""Bytes that one lane reads alone."""
LANE = 3 << 13
"""Bytes a lane should have at least, so that what it loses at its start doesn't count."""
CPU_LANES, GPU_LANES = 64, 512
LONGEST_LANE = 1 << 16


@dataclass(frozen=True)
class Plan:
    """Bytes of the beginning and of each segment after it, and how many lanes a segment has."""

    beginning: int
    segment: int
    lanes: int


def plan(size: int, *, cuda: bool, lanes: int | None = None) -> Plan:
    """How to cut `size` bytes; `lanes` of a segment, if they were chosen.

    A CPU does two segments at a time or more, each on one core; a GPU one with more lanes.
    """
    if size <= 2 * BEGINNING:
        return Plan(2 * BEGINNING, 2 * BEGINNING, 1)
    rest = size - BEGINNING
    at_once = 1 if cuda else 2
    share = -(-rest // at_once)
    if lanes is None:
        lanes = min(GPU_LANES if cuda else CPU_LANES, max(1, share // LANE))
    lanes = min(lanes, MAX_LANES)
    longest = min(MAX_SEGMENT // 2, lanes * LONGEST_LANE)
    segments = at_once * max(1, -(-share // longest))
    return Plan(BEGINNING, -(-rest // segments), lanes)
