"""The generator's operations: loading checkpoints; generating, continuing and branching texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoint import has_manifest
from core.config.sampling import SamplingSettings
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.generation.decoder import Decoder
from core.generation.generation import Generation
from core.generation.self_check import check_all_kernels
from core.model import GPT
from core.system.hardware import resolve_device
from core.system.json_lines import Handlers, Request

Load = Callable[[Path, str], tuple[GPT, Tokenizer, Mapping[str, Any]]]
REMEMBERED_GENERATIONS = 32
SLOTS = 2


@dataclass
class Slot:
    """A loaded checkpoint, and the text that it is in the middle of."""

    model: GPT
    tokenizer: Tokenizer
    decoder: Decoder
    busy: bool = False

    def check_free(self) -> None:
        """Raise UserError while another answer generates with this model."""
        if self.busy:
            raise UserError("this slot is generating already; a request beside it needs the other slot")


@dataclass
class Record:
    """A generation that can be branched: where it started, with its prompt unread, and its tokens."""

    slot: Slot
    start: Decoder
    tokens: list[int] = field(default_factory=list)


class GeneratorService:
    """Answers the requests of `core/system/json_lines.py`.

    load      {"id", "checkpoint", "device": "auto", "slot": 0}  ->  loading, loaded
    generate  {"id", "prompt", "continue": false, "slot": 0, ...SamplingSettings}  ->  token ..., done
    branch    {"id", "of": id of a generation, "index", "token": id or null, ...SamplingSettings}
              ->  token ..., done; its first token has that index

    Canceling a generation ends it between two tokens; its `done` says "stopped".
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._slots: dict[int, Slot] = {}
        self._records: dict[int | str, Record] = {}

    def handlers(self) -> Handlers:
        """The handler of each operation."""
        return {"load": self._on_load, "generate": self._on_generate, "branch": self._on_branch}

    def _on_load(self, request: Request) -> None:
        path = Path(request.value("checkpoint", str))
        slot = _slot_number(request)
        device = resolve_device(request.value("device", str, "auto"))
        request.reply("loading", checkpoint=str(path), device=device, slot=slot)
        if old := self._slots.pop(slot, None):  # the new one may need its memory
            self._records = {id: record for id, record in self._records.items() if record.slot is not old}
            del old
        model, tokenizer, payload = self._load(path, device)
        warnings = check_all_kernels(device, model.config.attention_type)
        model.eval()
        self._slots[slot] = Slot(model, tokenizer, Decoder(model, tokenizer.eot))
        request.reply(
            "loaded",
            name=f"{path.absolute().parent.name}/{path.name}",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            step=payload.get("step"),
            device=device,
            vocab_size=model.vocab_size,
            slot=slot,
            verified=has_manifest(path),
            warnings=warnings,
        )

    def _on_generate(self, request: Request) -> Iterator[None]:
        settings = SamplingSettings.read(request.values)
        number = _slot_number(request)
        prompt = request.value("prompt", str, "")
        slot = self._slots.get(number)
        if slot is None:
            raise UserError(f"slot {number} has no checkpoint yet; load one first")
        slot.check_free()
        if not request.value("continue", bool, False):
            slot.decoder = Decoder(slot.model, slot.tokenizer.eot)
        slot.decoder.prompt(slot.tokenizer, prompt)
        record = Record(slot, slot.decoder.fork())
        yield from self._generate(request, record, Generation(
            slot.decoder, slot.tokenizer, settings, stopped=lambda: request.canceled
        ))  # fmt: skip

    def _on_branch(self, request: Request) -> Iterator[None]:
        settings = SamplingSettings.read(request.values)
        of, index = request.values.get("of"), request.value("index", int)
        base = self._records.get(of) if isinstance(of, (int, str)) else None
        if base is None:
            raise UserError(f"of is {of!r}; accepted: the id of a recent generation in a loaded slot")
        if not 0 <= index <= len(base.tokens):
            raise UserError(f"index is {index}; accepted: a whole number from 0 to {len(base.tokens)}")
        token = None if request.values.get("token") is None else request.value("token", int)
        base.slot.check_free()
        kept = base.tokens[:index]
        decoder = base.start.fork()
        if kept:
            decoder.healing = None  # the first token of the generation replaced it
        decoder.append(kept)
        generation = Generation(
            decoder,
            base.slot.tokenizer,
            settings,
            stopped=lambda: request.canceled,
            earlier=kept,
            first=token,
            healed=base.start.healing,
        )
        base.slot.decoder = decoder
        yield from self._generate(request, Record(base.slot, base.start), generation)

    def _generate(self, request: Request, record: Record, generation: Generation) -> Iterator[None]:
        record.slot.busy = True
        try:
            yield from self._tokens(request, record, generation)
        finally:
            record.slot.busy = False

    def _tokens(self, request: Request, record: Record, generation: Generation) -> Iterator[None]:
        record.tokens = generation.tokens
        self._records[request.id] = record
        while len(self._records) > REMEMBERED_GENERATIONS:
            del self._records[next(iter(self._records))]
        begin, first, count = time.perf_counter(), 0.0, 0
        for token in generation:
            count += 1
            first = first or time.perf_counter() - begin
            request.reply(
                "token",
                index=token.index,
                token=token.token,
                text=token.text,
                probability=token.probability,
                alternatives=[[text, probability] for _, text, probability in token.alternatives],
                alternative_tokens=[id for id, _, _ in token.alternatives],
                ends_document=token.ends_document,
            )
            yield
        seconds = time.perf_counter() - begin
        # The first token waits for the prompt to be read, so it says nothing about the speed of the others.
        speed = (
            (count - 1) / (seconds - first) if count > 1 and seconds > first else count / max(seconds, 1e-9)
        )
        request.reply(
            "done",
            reason=generation.reason,
            text=generation.tail,
            tokens=count,
            seconds=seconds,
            time_to_first_token=first if count else None,
            tokens_per_second=speed,
        )


def _slot_number(request: Request) -> int:
    slot = request.value("slot", int, 0)
    if not 0 <= slot < SLOTS:
        raise UserError(f"slot is {slot}; accepted: a whole number from 0 to {SLOTS - 1}")
    return slot
