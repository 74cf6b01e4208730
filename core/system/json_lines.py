"""A process that answers requests, each a JSON object on a line, with events, each a JSON object on a line.

    -> {"op": "count", "id": 1, "to": 3}              a request names its operation and itself
    <- {"event": "number", "id": 1, "value": 1}       its answer is any number of events with its id
    <- {"event": "error", "id": 1, "message": "..."}  whatever is wrong with a request, in one sentence
    -> {"op": "cancel", "id": 1}                      asks the answer to that request to end early
    -> {"op": "quit"}                                 ends the process, as the end of the input does

Requests are answered one after the other, except that one with {"beside": id} takes turns with the answer to
that request, if it is under way and both are given in parts. A thread reads them, so that cancelling works
meanwhile, and so that a process whose parent is gone ends even in the middle of work that looks at nothing,
such as an import.
The other end is `json_lines_client.py`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from core.errors import UserError

GRACE_SECONDS = 1.0
"""How long running work may take to notice that the input has ended."""
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
Value = TypeVar("Value")


class Request:
    """One request; the handler of its operation answers it."""

    def __init__(self, server: Server, values: dict[str, Any]) -> None:
        self._server = server
        self.values = values
        self.op: str = values["op"]
        self.id: int | str = values["id"]

    @property
    def canceled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._server.is_canceled(self)

    def value(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """The value of a key, or the default if it is missing. Raises UserError for another type."""
        value = self.values.get(key, default)
        if type(value) is not kind:
            raise UserError(f"{key} is {value!r}; accepted: {KINDS[kind]}")
        return value

    def paths(self, key: str) -> list[str]:
        """The files and folders of a key, at least one. Raises UserError for anything else."""
        paths = self.values.get(key)
        if not isinstance(paths, list) or not paths or not all(isinstance(one, str) for one in paths):
            raise UserError(f"{key} is {paths!r}; accepted: a list of files and folders")
        return paths

    def reply(self, event: str, **values: Any) -> None:
        """Send one event of the answer. Raises BrokenPipeError if nobody reads any more."""
        self._server.emit(event, self.id, **values)


Handlers = Mapping[str, Callable[[Request], Iterator[None] | None]]
"""What answers each operation. A handler that gives its answer in parts yields after each of them."""


class Server:
    """Reads requests from `lines` in a thread of its own and passes events to `write`."""

    def __init__(self, lines: Iterable[str], write: Callable[[str], object]) -> None:
        self._lines, self._write = lines, write
        self._requests: queue.SimpleQueue[Request | UserError | None] = queue.SimpleQueue()
        self._waiting: deque[Request | UserError | None] = deque()
        self._unfinished: set[int | str] = set()
        self._canceled: set[int | str] = set()
        self._input_ended = threading.Event()
        self._done = threading.Event()

    def start(self, at_end: Callable[[], object] = lambda: None) -> None:
        """Start reading. `at_end` is called if running work outlives the input by GRACE_SECONDS."""
        threading.Thread(target=self._read, args=(at_end,), name="requests", daemon=True).start()

    def serve(self, handlers: Handlers) -> None:
        """Answer requests until the input ends or says quit; unanswered ones are dropped."""
        try:
            while (request := self._next()) is not None and not self._input_ended.is_set():
                if isinstance(request, UserError):
                    self.emit("error", None, message=str(request))
                else:
                    self._answer_in_turns(request, handlers)
        finally:
            self._done.set()

    def _next(self) -> Request | UserError | None:
        """The next request, or what is wrong with it; None at the end. Waits for it."""
        return self._waiting.popleft() if self._waiting else self._requests.get()

    def _beside(self, ids: set[int | str]) -> Request | None:
        """The next request, if it has come and wants to be answered beside one of these."""
        if not self._waiting and not self._requests.empty():
            self._waiting.append(self._requests.get())
        request = self._waiting[0] if self._waiting else None
        if not isinstance(request, Request) or request.values.get("beside") not in ids:
            return None
        self._waiting.popleft()
        return request

    def _answer_in_turns(self, request: Request, handlers: Handlers) -> None:
        """Answer a request, and beside it those that want to be, a part of each in turn."""
        answers = deque([(request, self._answer(request, handlers))])
        while answers:
            current, parts = answers.popleft()
            try:
                next(parts)
            except StopIteration:
                continue
            answers.append((current, parts))
            if (other := self._beside({one.id for one, _ in answers})) is not None:
                answers.appendleft((other, self._answer(other, handlers)))

    def is_canceled(self, request: Request) -> bool:
        """Whether the request was canceled, or the input has ended."""
        return request.id in self._canceled or self._input_ended.is_set()

    def emit(self, event: str, id: int | str | None, **values: Any) -> None:
        """Send one event."""
        self._write(json.dumps({"event": event, "id": id, **values}, allow_nan=False) + "\n")

    def _read(self, at_end: Callable[[], object]) -> None:
        try:
            for line in self._lines:
                if not line.strip():
                    continue
                try:
                    values = _parse(line)
                except UserError as error:
                    self._requests.put(error)
                    continue
                if values["op"] == "quit":
                    break
                if values["op"] == "cancel":
                    self._canceled |= self._unfinished & {values["id"]}
                else:
                    self._unfinished.add(values["id"])
                    self._requests.put(Request(self, values))
        finally:
            self._input_ended.set()
            self._requests.put(None)
        if not self._done.wait(GRACE_SECONDS):
            at_end()

    def _answer(self, request: Request, handlers: Handlers) -> Iterator[None]:
        """Answer a request in as many parts as its handler does."""
        try:
            if request.op not in handlers:
                raise UserError(f"op is {request.op!r}; accepted: {', '.join([*handlers, 'cancel', 'quit'])}")
            yield from handlers[request.op](request) or ()
        except BrokenPipeError:
            raise
        except UserError as error:
            request.reply("error", message=str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            reason = str(error).strip().splitlines()
            message = f"{request.op} failed: {type(error).__name__}{': ' + reason[0] if reason else ''}"
            request.reply("error", message=message)
        finally:
            self._unfinished.discard(request.id)
            self._canceled.discard(request.id)


def _parse(line: str) -> dict[str, Any]:
    """A request with a usable operation and id. Raises UserError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"a request is not JSON: {line.strip()[:80]!r}") from None
    if not isinstance(request, dict):
        raise UserError(f"a request is {line.strip()[:80]!r}; accepted: a JSON object with op and id")
    if not isinstance(request.get("op"), str):
        raise UserError(f"op is {request.get('op')!r}; accepted: the name of an operation")
    if request["op"] != "quit" and type(request.get("id")) not in (int, str):
        raise UserError(f"id is {request.get('id')!r}; accepted: a whole number or text")
    return request


def serve_standard_streams(load_handlers: Callable[[], Handlers]) -> int:
    """Serve on standard input and output. Returns the exit code.

    `load_handlers` is called while requests are being read already, so it may import slow modules.
    """
    # Ctrl-C in the terminal is meant for the reader of our output, which will cancel the request.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    out = sys.stdout
    sys.stdout = sys.stderr  # a stray print must not end up between the events

    def write(line: str) -> None:
        out.write(line)
        out.flush()

    server = Server(sys.stdin, write)
    server.start(at_end=lambda: os._exit(0))
    try:
        server.serve(load_handlers())
    except BrokenPipeError:
        # Nobody reads any more. The reading thread may still wait for input, and a normal exit would wait for
        # it.
        os._exit(1)
    return 0
