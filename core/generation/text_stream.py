"""Turns the bytes of tokens into text as they arrive."""

from __future__ import annotations

import codecs


class TextStream:
    """Turns token bytes into text that is safe to show: whole characters only, and no part of a stop text."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop = stop
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Add bytes; returns the text that is certain now. Sets `stopped` at a stop text."""
        held = self._held + self._decoder.decode(data)
        stops = [at for text in self.stop if (at := held.find(text)) >= 0]
        if stops:
            self.stopped = True
            self._held = ""
            return held[: min(stops)]
        # The longest end of the text that could become a stop text is held back.
        size = max((_overlap(held, text) for text in self.stop), default=0)
        self._held = held[len(held) - size :]
        return held[: len(held) - size]

    def flush(self) -> str:
        """The text that was held back, once there are no more bytes."""
        held = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
