"""The other end of a `json_lines.py` process: one client for asyncio, one that blocks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from core.errors import UserError
from core.system.processes import module_environment

LONGEST_LINE = 1 << 24
EVENTS_WITHOUT_PAUSE = 32
Event = dict[str, Any]


def _event(line: bytes) -> Event | None:
    """The event on a line; None if the line has none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _line(operation: str, request: int, fields: dict[str, Any]) -> bytes:
    return json.dumps({"op": operation, "id": request, **fields}).encode() + b"\n"


class AsyncClient:
    """Starts the process when it is first needed, and again after it has ended; passes events to a callback.

    If the process ends by itself, the callback receives {"event": "ended", "code": its exit code}.
    """

    def __init__(self, handler: Callable[[Event], None], command: Sequence[str], name: str) -> None:
        """`name` is how messages refer to the process, such as "the generator"."""
        self._handler, self._command, self._name = handler, list(command), name
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._requests = 0
        self._closing = False
        self._starting = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.returncode is None

    async def send(self, operation: str, **fields: Any) -> int:
        """Send a request. Returns its id. Raises UserError if the process can't be started or has ended."""
        # Two requests at once must not start two processes.
        async with self._starting:
            if not self.running:
                await self._start()
        self._requests += 1
        request = self._requests
        await self._put(_line(operation, request, fields))
        return request

    async def cancel(self, request: int) -> None:
        """Ask for the answer to a request to end early; its last event still arrives."""
        if self.running:
            await self._put(_line("cancel", request, {}))

    async def _start(self) -> None:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LONGEST_LINE,
                start_new_session=True,
                env=module_environment(),
            )
        except OSError as error:
            raise UserError(f"{self._name} cannot be started: {error.strerror}") from None
        self._reader = asyncio.create_task(self._read(self._process))

    async def _put(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            await self._process.stdin.drain()
        except (OSError, RuntimeError):
            raise UserError(f"{self._name} has ended; try again") from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        lines = 0
        while True:
            lines += 1
            if lines % EVENTS_WITHOUT_PAUSE == 0:
                # Lines that have already arrived are returned without a pause: let the screen have one.
                await asyncio.sleep(0)
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line longer than any event isn't ours
            if not line:
                break
            if event := _event(line):
                self._handler(event)
        code = await process.wait()
        if not self._closing:
            self._handler({"event": "ended", "code": code})

    async def close(self) -> None:
        """End the process; kill it if it doesn't end by itself."""
        self._closing = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            if process.stdin is not None:
                process.stdin.close()
            await asyncio.wait_for(process.wait(), 0.3)
        except (TimeoutError, OSError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def answer(command: Sequence[str], name: str, operation: str, **fields: Any) -> Event:
    """The single event that answers a request to a process started for it. Raises UserError for an error."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    client = AsyncClient(events.put_nowait, command, name)
    try:
        await client.send(operation, **fields)
        event = await events.get()
    finally:
        await client.close()
    if event["event"] == "error":
        raise UserError(event["message"])
    if event["event"] == "ended":
        raise UserError(f"{name} ended unexpectedly (exit code {event['code']})")
    return event


class BlockingClient:
    """Starts the process at once and ends it with the `with` block; events are read on request."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        """`name` is how messages refer to the process. Its stderr is shown."""
        self._name = name
        # In its own session, so that Ctrl-C here cancels a request and doesn't end the process.
        self._process = subprocess.Popen(
            command, env=module_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._requests = 0

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def send(self, operation: str, **fields: Any) -> int:
        """Send a request. Returns its id. Raises UserError if the process has ended."""
        self._requests += 1
        self._put(_line(operation, self._requests, fields))
        return self._requests

    def cancel(self, request: int) -> None:
        """Ask for the answer to a request to end early; its last event still arrives."""
        self._put(_line("cancel", request, {}))

    def events(self, request: int) -> Iterator[Event]:
        """A request's events as they arrive. Raises UserError for an error event, and if the process ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = _event(line)
            if event is None:
                continue
            if event["event"] == "error" and event.get("id") in (request, None):
                raise UserError(event["message"])
            if event.get("id") == request:
                yield event
        raise UserError(self._ended)

    @property
    def _ended(self) -> str:
        return f"{self._name} ended unexpectedly; the lines above say why"

    def _put(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise UserError(self._ended) from None
