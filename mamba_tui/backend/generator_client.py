"""The console's end of the generator process: requests as JSON lines, events handed to a callback."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from core.errors import UserError
from core.system.processes import module_command, module_environment

LONGEST_LINE = 1 << 24
Event = dict[str, Any]
Handler = Callable[[Event], None]


class GeneratorClient:
    """Starts `python -P -m core.generation.server` when it is first needed and again after it ended."""

    def __init__(self, handler: Handler, command: Sequence[str] | None = None) -> None:
        self._handler = handler
        self._command = list(command or module_command("core.generation.server"))
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._requests = 0
        self._closing = False
        self._starting = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def send(self, operation: str, **fields: Any) -> int:
        """Send a request; its id. Raises UserError when the process cannot be started."""
        # Two loads at once must not start two processes.
        async with self._starting:
            if not self.running:
                await self._start()
        self._requests += 1
        await self._put({"op": operation, "id": self._requests, **fields})
        return self._requests

    async def stop(self, request: int) -> None:
        """End a generation; its `done` event still comes."""
        if self.running:
            await self._put({"op": "stop", "id": request})

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
            raise UserError(f"the generator cannot be started: {error.strerror}") from None
        self._reader = asyncio.create_task(self._read(self._process))

    async def _put(self, request: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
        except (OSError, RuntimeError):
            raise UserError("the generator has ended; try again") from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        lines = 0
        while True:
            lines += 1
            if lines % 32 == 0:
                # Lines that are there already are handed out without a pause: let the screen have one.
                await asyncio.sleep(0)
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line beyond all measure: not ours
            if not line:
                break
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                self._handler(event)
        code = await process.wait()
        if not self._closing:
            self._handler({"event": "ended", "code": code})

    async def close(self) -> None:
        """End the process; at once when it does not end by itself."""
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
