"""Where the steps of a run are in its event file, in a few thousand entries however long the file is."""

from __future__ import annotations

import bisect


class EventIndex:
    """(offset, last step before it) at intervals of the event file; both increase."""

    def __init__(self, grain: int = 1 << 16, most: int = 4096) -> None:
        self.grain = grain
        self.most = most
        self.offsets: list[int] = []
        self.steps: list[int] = []

    def note(self, offset: int, step: int) -> None:
        """Reading has reached `offset`, where the last step is `step`."""
        if self.offsets and offset - self.offsets[-1] < self.grain:
            return
        self.offsets.append(offset)
        self.steps.append(step)
        if len(self.offsets) > self.most:
            self.grain *= 2
            self.offsets, self.steps = self.offsets[::2], self.steps[::2]

    def cut(self, step: int) -> None:
        """Forget the steps after `step`, which were undone."""
        keep = bisect.bisect_right(self.steps, step)
        del self.offsets[keep:], self.steps[keep:]

    def around(self, low: float, high: float) -> tuple[int, int | None]:
        """Where to start and stop reading to get all steps from `low` to `high`; None means the end."""
        first = bisect.bisect_left(self.steps, low) - 1
        last = bisect.bisect_right(self.steps, high)
        return (
            self.offsets[first] if first >= 0 else 0,
            self.offsets[last] if last < len(self.offsets) else None,
        )
