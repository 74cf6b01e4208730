"""The inspection process as the pane sees it: what is loaded and read, and one wanted picture at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.system.json_lines_client import AsyncClient, Event
from core.system.processes import module_command

TOKENS = 512


class Inspection:
    """Sends requests and keeps the newest answers.

    While a picture is on its way only the newest wish is remembered, so a cursor that runs over a text never
    makes the process fall behind.
    """

    def __init__(self, changed: Callable[[str], None], command: Sequence[str] | None = None) -> None:
        """`changed` hears the kind of each event that was taken; `command` starts another process."""
        self.client = AsyncClient(
            self._take,
            command or module_command("core.inspection.server"),
            "the process that looks into layers",
        )
        self._changed = changed
        self.name = ""
        self.state = ""
        self.problem = ""
        self.model: dict[str, Any] | None = None
        self.text: dict[str, Any] | None = None
        self.lens: dict[str, Any] | None = None
        self.map: dict[str, Any] | None = None
        self.layers: dict[str, Any] | None = None
        self.memory: dict[int, dict[str, Any]] = {}
        self._load_request = self._read_request = self._picture_request = 0
        self._wish: tuple[str, dict[str, Any]] | None = None

    async def load(self, path: str, name: str) -> None:
        """Load a checkpoint."""
        self._forget()
        self.model, self.name, self.state = None, name, "loading ..."
        self._changed("loading")
        self._load_request = await self.client.send("load", checkpoint=path, device="auto")

    async def read(self, **text: Any) -> None:
        """Read a text: `text`, `texts` (files), or without either the run's last validation text."""
        self._forget()
        self.state = "reading the text ..."
        self._read_request = await self.client.send("read", count=TOKENS, **text)

    async def want(self, operation: str, **values: Any) -> None:
        """Ask for a picture; if one is on its way already, after that one."""
        if self._picture_request:
            self._wish = operation, values
            return
        self._picture_request = -1  # until the id is known nobody else sends
        try:
            self._picture_request = await self.client.send(operation, **values)
        except BaseException:
            self._picture_request = 0
            raise

    def next_wish(self) -> tuple[str, dict[str, Any]] | None:
        """What was wanted while another picture was on its way, once."""
        if self._picture_request:
            return None
        wish, self._wish = self._wish, None
        return wish

    def _forget(self) -> None:
        self.text = self.lens = self.map = self.layers = None
        self.memory = {}
        self._wish = None
        self.problem = ""

    def _take(self, event: Event) -> None:
        kind, request = event["event"], event.get("id")
        if kind == "ended":
            self._forget()
            self.model, self.name, self.state, self._picture_request = None, "", "", 0
            self.problem = "the process that looks into layers ended; Ctrl+L loads a checkpoint again"
        elif kind == "error":
            if request == self._picture_request:
                self._picture_request = 0
            if request in (self._load_request, self._read_request):
                self.state = ""
            self.problem = str(event.get("message"))
        elif kind == "progress":
            self.state = f"reading the text: {event.get('text', '')} ..."
        elif kind == "loaded" and request == self._load_request:
            self.model, self.state = event, ""
        elif kind == "text" and request == self._read_request:
            self.text, self.state = event, ""
        elif kind in ("lens", "map", "layers", "memory"):
            if request == self._picture_request:
                self._picture_request = 0
            if self.text is not None and isinstance(request, int) and request > self._read_request:
                self._keep(kind, event)
        self._changed(kind)

    def _keep(self, kind: str, event: Event) -> None:
        if kind == "memory":
            self.memory[int(event["layer"])] = event
        else:
            setattr(self, kind, event)

    async def close(self) -> None:
        """End the process."""
        await self.client.close()
