"""Work that may wait for a disk or a process, in threads that can't keep the program from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def off_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run blocking work in a daemon thread and return its result or raise its exception."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def body() -> None:
        result, error = None, None
        try:
            result = work(*arguments)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the program ended in the meantime
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=body, daemon=True, name="console-work").start()
    return await future
