"""The generator process, `python -P -m core.generation.server`: JSON lines in, JSON lines out.

It holds up to a few loaded checkpoints ("slots") so that whoever shows text never has to import torch.
Requests are read in a thread of their own, so a stop takes effect between two tokens. Whatever is wrong
with a request becomes one error event, and the process lives on. The protocol stands at `Server`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.sampling import Decoder, Generation, SamplingConfig
from core.model import GPT
from core.system.allocator import keep_freed_memory
from core.system.hardware import resolve_device

Load = Callable[[Path, str], tuple[GPT, Tokenizer, Mapping[str, Any]]]
OPERATIONS = ("load", "generate", "branch", "stop", "quit")
REMEMBERED_GENERATIONS = 32
SLOTS = 2


@dataclass
class Slot:
    """A loaded checkpoint, and the text it is in the middle of."""

    model: GPT
    tokenizer: Tokenizer
    decoder: Decoder


@dataclass
class Record:
    """A generation that can be branched: where it started, with its prompt unread, and its tokens."""

    slot: Slot
    start: Decoder
    tokens: list[int] = field(default_factory=list)


class Server:
    """Answers requests, each a JSON object on a line, with events, each a JSON object on a line.

    load      {"id", "checkpoint", "device": "auto", "slot": 0}  ->  loading, loaded
    generate  {"id", "prompt", "continue": false, "slot": 0, ...SamplingConfig}  ->  token ..., done
    branch    {"id", "of": id of a generation, "index", "token": id or null, ...SamplingConfig}
              ->  token ..., done; its first token has that index
    stop      {"id": of the generation to end}
    quit      ends the process, as the end of the input does
    """

    def __init__(self, lines: Iterable[str], write: Callable[[str], object], load: Load) -> None:
        self._lines, self._write, self._load = lines, write, load
        self._requests: queue.Queue[dict[str, Any] | UserError | None] = queue.Queue()
        self._stopped: set[Any] = set()
        self._closing = threading.Event()
        self._slots: dict[int, Slot] = {}
        self._records: dict[Any, Record] = {}

    def run(self) -> None:
        """Answer until the input ends or says quit."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        while (request := self._requests.get()) is not None and not self._closing.is_set():
            if isinstance(request, UserError):
                self._emit("error", None, message=str(request))
            else:
                self._answer(request)

    def _listen(self) -> None:
        try:
            for line in self._lines:
                if not line.strip():
                    continue
                try:
                    request = _parse(line)
                except UserError as error:
                    self._requests.put(error)
                    continue
                if request["op"] == "stop":
                    self._stopped.add(request["id"])
                elif request["op"] == "quit":
                    break
                else:
                    self._requests.put(request)
        finally:
            self._closing.set()
            self._requests.put(None)

    def _answer(self, request: dict[str, Any]) -> None:
        handler = {"load": self._on_load, "generate": self._on_generate, "branch": self._on_branch}
        try:
            handler[request["op"]](request)
        except BrokenPipeError:
            raise
        except UserError as error:
            self._emit("error", request["id"], message=str(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            reason = str(error).strip().splitlines()
            message = f"{request['op']} failed: {type(error).__name__}{': ' + reason[0] if reason else ''}"
            self._emit("error", request["id"], message=message)

    def _on_load(self, request: dict[str, Any]) -> None:
        path = Path(_value(request, "checkpoint", str))
        slot = _slot_number(request)
        device = resolve_device(_value(request, "device", str, "auto"))
        self._emit("loading", request["id"], checkpoint=str(path), device=device, slot=slot)
        if old := self._slots.pop(slot, None):  # its memory may be needed for the new one
            self._records = {id: record for id, record in self._records.items() if record.slot is not old}
            del old
        model, tokenizer, payload = self._load(path, device)
        model.eval()
        self._slots[slot] = Slot(model, tokenizer, Decoder(model, tokenizer.eot))
        self._emit(
            "loaded",
            request["id"],
            name=f"{path.absolute().parent.name}/{path.name}",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            step=payload.get("step"),
            device=device,
            vocab_size=model.vocab_size,
            slot=slot,
        )

    def _on_generate(self, request: dict[str, Any]) -> None:
        config = SamplingConfig.from_mapping(request)
        number = _slot_number(request)
        prompt = _value(request, "prompt", str, "")
        slot = self._slots.get(number)
        if slot is None:
            raise UserError(f"slot {number} holds no checkpoint yet; load one first")
        if not _value(request, "continue", bool, False):
            slot.decoder = Decoder(slot.model, slot.tokenizer.eot)
        slot.decoder.prompt(slot.tokenizer, prompt)
        record = Record(slot, slot.decoder.fork())
        self._generate(request, record, Generation(
            slot.decoder, slot.tokenizer, config, stopped=self._stop_test(request)
        ))  # fmt: skip

    def _on_branch(self, request: dict[str, Any]) -> None:
        config = SamplingConfig.from_mapping(request)
        of, index = request.get("of"), _value(request, "index", int)
        base = self._records.get(of) if isinstance(of, (int, str)) else None
        if base is None:
            raise UserError(f"of is {of!r}; accepted: the id of a recent generation in a loaded slot")
        if not 0 <= index <= len(base.tokens):
            raise UserError(f"index is {index}; accepted: a whole number from 0 to {len(base.tokens)}")
        token = None if request.get("token") is None else _value(request, "token", int)
        kept = base.tokens[:index]
        decoder = base.start.fork()
        if kept:
            decoder.held = None  # the first token that was written stands in its place
        decoder.append(kept)
        generation = Generation(
            decoder,
            base.slot.tokenizer,
            config,
            stopped=self._stop_test(request),
            written=kept,
            first=token,
            held=base.start.held,
        )
        base.slot.decoder = decoder
        self._generate(request, Record(base.slot, base.start), generation)

    def _generate(self, request: dict[str, Any], record: Record, generation: Generation) -> None:
        record.tokens = generation.tokens
        self._records[request["id"]] = record
        while len(self._records) > REMEMBERED_GENERATIONS:
            del self._records[next(iter(self._records))]
        begin, first, count = time.perf_counter(), 0.0, 0
        for step in generation:
            count += 1
            first = first or time.perf_counter() - begin
            self._emit(
                "token",
                request["id"],
                index=step.index,
                token=step.token,
                text=step.text,
                probability=step.probability,
                alternatives=[[text, probability] for _, text, probability in step.alternatives],
                alternative_tokens=[token for token, _, _ in step.alternatives],
            )
        seconds = time.perf_counter() - begin
        # The first token waits for the prompt to be read, so it says nothing about the speed of writing.
        speed = (
            (count - 1) / (seconds - first) if count > 1 and seconds > first else count / max(seconds, 1e-9)
        )
        self._emit(
            "done",
            request["id"],
            reason=generation.reason,
            text=generation.tail,
            tokens=count,
            seconds=seconds,
            time_to_first_token=first if count else None,
            tokens_per_second=speed,
        )

    def _stop_test(self, request: dict[str, Any]) -> Callable[[], bool]:
        return lambda: self._closing.is_set() or request["id"] in self._stopped

    def _emit(self, event: str, id: Any, **values: Any) -> None:
        self._write(json.dumps({"event": event, "id": id, **values}, allow_nan=False) + "\n")


def _parse(line: str) -> dict[str, Any]:
    """A request of a known operation with a usable id. Raises UserError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"a request is not JSON: {line.strip()[:80]!r}") from None
    if not isinstance(request, dict):
        raise UserError(f"a request is {line.strip()[:80]!r}; accepted: a JSON object with op and id")
    if request.get("op") not in OPERATIONS:
        raise UserError(f"op is {request.get('op')!r}; accepted: {', '.join(OPERATIONS)}")
    if request["op"] != "quit" and type(request.get("id")) not in (int, str):
        raise UserError(f"id is {request.get('id')!r}; accepted: a whole number or text")
    return request


def _value(request: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A request's value, which must be of the kind, or the default where it is missing."""
    value = request.get(key, default)
    if type(value) is not kind:
        names = {str: "text", int: "a whole number", bool: "true or false"}
        raise UserError(f"{key} is {value!r}; accepted: {names[kind]}")
    return value


def _slot_number(request: dict[str, Any]) -> int:
    slot: int = _value(request, "slot", int, 0)
    if not 0 <= slot < SLOTS:
        raise UserError(f"slot is {slot}; accepted: a whole number from 0 to {SLOTS - 1}")
    return slot


def _load_checkpoint(path: Path, device: str) -> tuple[GPT, Tokenizer, Mapping[str, Any]]:
    from core.checkpoint import load_model

    return load_model(path, device)


def main() -> int:
    """Serve standard input and output until the input ends."""
    # Ctrl-C in the terminal is meant for whoever reads our output; it will ask us to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    out = sys.stdout
    sys.stdout = sys.stderr  # a stray print must not end up between the events

    def write(line: str) -> None:
        out.write(line)
        out.flush()

    try:
        Server(sys.stdin, write, _load_checkpoint).run()
    except BrokenPipeError:
        # Nobody reads any more. The reading thread may still wait for input, which a tidy exit would await.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
