"""Codes segments of a file one after the other, or on CPU several at once, each in its own process.

Every process uses one thread, so the arithmetic doesn't depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from core.compression.engine import Engine
from core.compression.format import Segment
from core.errors import UserError

REPORT_SECONDS = 0.2
Tell = Callable[[float], object]
"""Called several times a second with the bytes done so far."""


class CanceledError(UserError):
    """The work was canceled."""

    def __init__(self) -> None:
        super().__init__("canceled; nothing was written")


class Progress:
    """Counts bytes in one process and reports them; raises CanceledError if asked to stop."""

    def __init__(self, tell: Tell, stopped: Callable[[], bool]) -> None:
        self.done = 0.0
        self._tell, self._stopped, self._told = tell, stopped, 0.0

    def add(self, count: float) -> None:
        """`count` more bytes are done."""
        self.done += count
        self.look()

    def look(self, elsewhere: float = 0.0) -> None:
        """Report if it is time; `elsewhere` are bytes done in other processes."""
        now = time.monotonic()
        if now - self._told >= REPORT_SECONDS:
            self._told = now
            if self._stopped():
                raise CanceledError
            self._tell(self.done + elsewhere)


def code_all(
    engine: Engine,
    checkpoint: Path,
    streams: int,
    parts: Iterable[bytes] | Iterable[Segment],
    workers: int,
    progress: Progress,
) -> Iterator[tuple[bytes, Segment]]:
    """Encode bytes or decode segments, in order, `workers` at once: yields (bytes, segment)."""
    if workers < 2:
        for part in parts:
            yield _coded(engine, streams, part, progress.add)
        return
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("d", 0.0), context.Event()
    begin = (str(checkpoint), str(engine.device), streams, done, stop)
    with ProcessPoolExecutor(workers, context, _begin, begin) as pool:
        waiting: deque[Future[tuple[bytes, Segment]]] = deque()

        def oldest() -> tuple[bytes, Segment]:
            future = waiting.popleft()
            while not future.done():
                progress.look(done.value)
                wait([future], timeout=REPORT_SECONDS)
            return future.result()

        try:
            for part in parts:
                waiting.append(pool.submit(_work, part))
                if len(waiting) > workers:
                    yield oldest()
            while waiting:
                yield oldest()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    progress.done += done.value


def _coded(
    engine: Engine, streams: int, part: bytes | Segment, add: Callable[[float], object]
) -> tuple[bytes, Segment]:
    if isinstance(part, Segment):
        return engine.decode(part, add), part
    return part, engine.encode(part, streams, add)


# Of a worker process.
_worker: dict[str, Any] = {}


def _begin(checkpoint: str, device: str, streams: int, done: Any, stop: Any) -> None:
    """Be a worker: load the model, and end when the parent does."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    engine = Engine.load(Path(checkpoint), device)
    _worker.update(engine=engine, streams=streams)

    def add(count: float) -> None:
        with done.get_lock():
            done.value += count
        if stop.is_set():
            raise CanceledError

    _worker["add"] = add


def _work(part: bytes | Segment) -> tuple[bytes, Segment]:
    return _coded(_worker["engine"], _worker["streams"], part, _worker["add"])
