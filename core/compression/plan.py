"""How a file is cut: into segments, and each into lanes that a model reads side by side.

Every lane begins as a document does, with nothing remembered. More lanes are faster and compress a little
less: a lane costs 8 bytes, and a few more because its first words are harder to predict.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.compression.format import MAX_LANES, MAX_SEGMENT

SHORT_LANE, LANE = 1 << 12, 3 << 13
"""Bytes a lane should have at least, of a short text, which should not take a minute, and of a long one."""
LONG_TEXT = 16 * LANE
CPU_LANES, GPU_LANES = 64, 512
LONGEST_LANE = 1 << 16


@dataclass(frozen=True)
class Plan:
    """Bytes of a segment, and how many lanes it has."""

    segment: int
    lanes: int


def plan(size: int, *, cuda: bool, lanes: int | None = None) -> Plan:
    """How to cut `size` bytes; `lanes` of a segment, if they were chosen.

    A CPU does two segments at a time or more, each on one core; a GPU one with more lanes.
    """
    lane = max(SHORT_LANE, min(LANE, LANE * size // LONG_TEXT))
    at_once = 1 if cuda or size < 2 * lane else 2
    share = -(-size // at_once)
    if lanes is None:
        lanes = min(GPU_LANES if cuda else CPU_LANES, max(1, share // lane))
    lanes = min(lanes, MAX_LANES)
    longest = min(MAX_SEGMENT // 2, lanes * LONGEST_LANE)
    segments = at_once * max(1, -(-share // longest))
    return Plan(max(1, -(-size // segments)), lanes)
