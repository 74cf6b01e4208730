"""Work that another process does for a command, and Ctrl-C during that work."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from core.errors import UserError
from core.system.json_lines_client import BlockingClient, Event
from core.system.processes import module_command

Answer = TypeVar("Answer")


def answer_of(
    module: str, what: str, operation: str, read: Callable[[Iterator[Event]], Answer], **values: Any
) -> Answer | None:
    """Start a process for one request and return what `read` makes of its events. `what` names the process.

    Returns None if Ctrl-C ended the work before there was an answer. Raises UserError if the process reports
    one.
    """
    with BlockingClient(module_command(module), what) as client:
        request = client.send(operation, **values)
        with canceling_on_interrupt(client, request) as interrupts:
            try:
                return read(client.events(request))
            except UserError:
                if interrupts:
                    return None
                raise


@contextlib.contextmanager
def canceling_on_interrupt(client: BlockingClient, request: int) -> Iterator[list[int]]:
    """Make Ctrl-C cancel the request, and a second one end the program. Yields the list of interrupts.

    A KeyboardInterrupt in the middle of a read could lose half a line, so the first one raises nothing.
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
