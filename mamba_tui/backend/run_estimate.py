"""What a run of a configuration would be and cost, before it is trained. Arithmetic and file sizes only.

The Configure pane shows it, and so does `mamba-tui train --plan`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import estimates as budget
from core.config.plan import Plan, TextSize, plan, seconds_by
from core.config.run_time import Duration
from core.config.schema import RunConfig
from core.config.speed import Speeds
from core.config.text_key import text_key
from core.system.hardware import cpu_device, describe, has_cuda, resolve_device

GUESSED_VOCABULARY = 4096


@dataclass(frozen=True)
class Survey:
    """Facts about the machine, the text and earlier runs, looked up once in a thread."""

    files: int | None = None
    text_bytes: int = 0
    memory_free: int = 0
    device: str = ""
    vocabularies: tuple[tuple[tuple[Hashable, ...], int], ...] = ()
    train_bytes: int = 0
    train_tokens: int = 0
    """0 until the text has been prepared."""
    validation_tokens: int = 0
    vocab_size: int = 0
    text_key: tuple[Hashable, ...] = ()
    """What the counts above belong to."""
    speeds: Speeds | None = None


def survey(config: RunConfig, root: Any) -> Survey:
    """Look up the size of the text, the device's memory and speed, and earlier runs."""
    from core.data.corpus.known_size import KnownSize, known_size
    from core.errors import UserError

    try:
        text = known_size(config.data, config.training.seed)
    except (OSError, UserError):
        text = KnownSize(0, 0)
    try:
        device = describe(config.hardware.device)
    except UserError:
        device = cpu_device()
    return Survey(
        text.files,
        text.bytes,
        device.memory_free,
        device.name,
        _vocabularies(root),
        text.train_bytes,
        text.train_tokens,
        text.validation_tokens,
        text.vocab_size,
        text_key(config.data, config.training.seed),
        Speeds.here(config),
    )


def _vocabularies(root: Any) -> tuple[tuple[tuple[Hashable, ...], int], ...]:
    """Vocabularies of the latest runs."""
    from core.config.schema import build
    from core.errors import UserError
    from core.runs import EventReader, list_runs, read_tail
    from core.runs.events import RunEvent

    vocabularies = []
    runs = sorted(list_runs(root), key=lambda run: -_modified(run.events_path))[:8]
    for run in runs:
        events = read_tail(run.events_path)
        events = EventReader(run.events_path).poll(5) + events
        # A vocabulary of 0 is unknown: its trainer ended before it had read the text.
        starts = [event for event in events if isinstance(event, RunEvent) and event.vocab_size]
        if not starts:
            continue
        try:
            config = build(starts[-1].config)
        except UserError:
            continue
        vocabularies.append((text_key(config.data, config.training.seed), starts[-1].vocab_size))
    return tuple(vocabularies)


def _modified(path: Any) -> float:
    try:
        return os.path.getmtime(path)
    except OSError:
        return 0.0


def vocabulary(config: RunConfig, known: Survey) -> tuple[int, bool]:
    """The vocabulary's size, and whether it is exact: a known kind's, an earlier run's, or a guess."""
    data = config.data
    key = text_key(data, config.training.seed)
    if data.tokenizer == "byte":
        return 257, True
    if data.tokenizer == "gpt2":
        return 50257, True
    if known.vocab_size and known.text_key == key:
        return known.vocab_size, True
    for text, size in known.vocabularies:
        if text == key:
            return size, True
    if data.tokenizer == "char":
        return 128, False
    if data.tokenizer == "auto" and data.vocab_size:
        return data.vocab_size, True
    if data.tokenizer == "auto" and known.text_bytes:
        from core.data.tokenizer.vocabulary import auto_vocabulary_size

        return auto_vocabulary_size(int(known.text_bytes * (1 - data.validation_fraction))), False
    return GUESSED_VOCABULARY, False


@dataclass(frozen=True)
class Estimate:
    """The numbers in the totals line."""

    parameters: int
    exact: bool
    flops_per_token: float
    memory: int
    memory_free: int
    device: str
    layers: Sequence[tuple[int, float]]
    """Parameters and share of the operations of every layer, then of embedding and head."""
    duration: Duration | None
    """For the whole run; None without text."""
    plan: Plan | None

    @property
    def fits(self) -> bool:
        """Whether training fits into free memory; True if unknown."""
        return not self.memory_free or self.memory <= self.memory_free


def text_size(config: RunConfig, known: Survey, vocab_size: int) -> tuple[TextSize, int]:
    """The training side, and the tokens for validation; estimated from bytes until the text is prepared."""
    if known.train_tokens and known.text_key == text_key(config.data, config.training.seed):
        return TextSize(known.train_bytes, known.train_tokens), known.validation_tokens
    share = config.data.validation_fraction
    size, each = known.text_bytes * (1 - share), bytes_per_token(vocab_size)
    text = TextSize(round(size), max(1, round(size / each)), exact=False)
    return text, max(1, round(known.text_bytes * share / each))


def bytes_per_token(vocab_size: int) -> float:
    """For English with a vocabulary learned from it, approximately: 1 for bytes, 3.6 for 4,096 tokens."""
    if vocab_size <= 300:
        return 1.0
    return min(4.8, 1.0 + 0.65 * math.log2(vocab_size / 256))


def estimate(config: RunConfig, known: Survey) -> Estimate:
    """The cost of a configuration, after deciding what it leaves to the plan."""
    size, exact = vocabulary(config, known)
    cuda, planned, length = _on_cuda(config), None, None
    speeds = known.speeds
    if known.text_bytes and speeds is not None:
        text, validation_tokens = text_size(config, known, size)
        sides = (text.tokens, validation_tokens)
        seconds = seconds_by(speeds, size, sides)
        planned = plan(config, text, cuda=cuda, vocab_size=size, seconds=seconds)
        config = planned.config
        length = speeds.duration(config, size, sides, 0 if text.exact else known.text_bytes)
    costs = budget.layers(config.model, size)
    whole = budget.flops_per_token(config.model, size)
    layers = [(layer.parameters, 3 * layer.flops / whole if whole else 0.0) for layer in costs]
    parameters = budget.parameters(config.model, size)
    rest = parameters - sum(count for count, _ in layers), max(0.0, 1 - sum(share for _, share in layers))
    memory = length.memory if length is not None else budget.training_memory(config, size, cuda=cuda)
    return Estimate(
        parameters=parameters,
        exact=exact,
        flops_per_token=whole,
        memory=round(memory),
        memory_free=known.memory_free,
        device=known.device,
        layers=[*layers, rest],
        duration=length,
        plan=planned,
    )


def _on_cuda(config: RunConfig) -> bool:
    from core.errors import UserError

    try:
        return resolve_device(config.hardware.device).startswith("cuda")
    except UserError:
        return has_cuda()
