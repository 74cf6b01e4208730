"""Ctrl-C while another process works for us."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from core.system.json_lines_client import BlockingClient

INTERRUPTED = 130


@contextlib.contextmanager
def canceling_on_interrupt(client: BlockingClient, request: int) -> Iterator[list[int]]:
    """Turn Ctrl-C into a cancel of the request; a second one ends the program. Yields the interrupts seen.

    A KeyboardInterrupt in the middle of a read could lose half a line, so none is raised at first.
    """
    interrupts: list[int] = []

    def cancel(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt
        client.cancel(request)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
