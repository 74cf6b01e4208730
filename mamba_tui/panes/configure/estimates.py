"""What the Configure pane says about a configuration before it is trained. Arithmetic and file sizes only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config import estimates as budget
from core.config.schema import RunConfig
from core.system.hardware import cpu_device, describe, has_cuda, resolve_device

GUESSED_VOCABULARY = 4096


@dataclass(frozen=True)
class Survey:
    """What is known of the machine, the text and earlier runs; looked up once, off the screen's thread."""

    files: int | None = None
    text_bytes: int = 0
    memory_free: int = 0
    device: str = ""
    tokens_per_second: float | None = None
    flops_then: float = 0.0
    vocabularies: tuple[tuple[tuple[Any, ...], int], ...] = ()


def survey(config: RunConfig, root: Any) -> Survey:
    """Look at the text folder, the device's memory and the last run here."""
    from core.data.corpus.listing import list_texts
    from core.errors import UserError

    try:
        sources = list_texts(config.data.dataset_dir, config.data.outside_links).sources
    except OSError:
        sources = []
    try:
        device = describe(config.hardware.device)
    except UserError:
        device = cpu_device()
    speed, flops, vocabularies = _last_run(root)
    return Survey(
        len(sources),
        sum(source.size for source in sources),
        device.memory_free,
        device.name,
        speed,
        flops,
        vocabularies,
    )


def _last_run(root: Any) -> tuple[float | None, float, tuple[tuple[tuple[Any, ...], int], ...]]:
    """Speed of the newest run that has one, its FLOPs per token, and vocabularies seen."""
    from core.config.schema import build
    from core.errors import UserError
    from core.runs import EventReader, list_runs, read_tail
    from core.runs.events import RunEvent, StepEvent

    vocabularies = []
    speed, flops = None, 0.0
    runs = sorted(list_runs(root), key=lambda run: -_modified(run.events_path))[:8]
    for run in runs:
        events = read_tail(run.events_path)
        events = EventReader(run.events_path).poll(5) + events
        # A vocabulary of 0 is not known: its trainer ended before it had read the text.
        starts = [event for event in events if isinstance(event, RunEvent) and event.vocab_size]
        if not starts:
            continue
        try:
            config = build(starts[-1].config)
        except UserError:
            continue
        vocabularies.append((_text_key(config), starts[-1].vocab_size))
        steps = [event for event in events if isinstance(event, StepEvent)]
        if speed is None and steps:
            speed = steps[-1].tokens_per_second
            flops = budget.flops_per_token(config.model, starts[-1].vocab_size)
    return speed, flops, tuple(vocabularies)


def _modified(path: Any) -> float:
    try:
        return os.path.getmtime(path)
    except OSError:
        return 0.0


def _text_key(config: RunConfig) -> tuple[Any, ...]:
    data = config.data
    return (os.path.abspath(data.dataset_dir), data.tokenizer, data.vocab_size, data.validation_fraction)


def vocabulary(config: RunConfig, known: Survey) -> tuple[int, bool]:
    """The vocabulary's size and whether it is exact: known kinds, an earlier run's, or a guess."""
    data = config.data
    if data.tokenizer == "byte":
        return 257, True
    if data.tokenizer == "gpt2":
        return 50257, True
    for key, size in known.vocabularies:
        if key == _text_key(config):
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
    """The totals line, in numbers."""

    parameters: int
    exact: bool
    flops_per_token: float
    memory: int
    memory_free: int
    device: str
    tokens_per_second: float | None
    layers: Sequence[tuple[int, float]]

    @property
    def fits(self) -> bool:
        """Whether training fits into what is free; True while that is not known."""
        return not self.memory_free or self.memory <= self.memory_free


def estimate(config: RunConfig, known: Survey) -> Estimate:
    """Cost of a configuration."""
    size, exact = vocabulary(config, known)
    costs = budget.layers(config.model, size)
    whole = budget.flops_per_token(config.model, size)
    cuda = _on_cuda(config)
    speed = None
    if known.tokens_per_second and known.flops_then and whole:
        speed = known.tokens_per_second * known.flops_then / whole
    return Estimate(
        parameters=budget.parameters(config.model, size),
        exact=exact,
        flops_per_token=whole,
        memory=budget.training_memory(config, size, cuda=cuda),
        memory_free=known.memory_free,
        device=known.device,
        tokens_per_second=speed,
        layers=[(layer.parameters, 3 * layer.flops / whole if whole else 0.0) for layer in costs],
    )


def _on_cuda(config: RunConfig) -> bool:
    from core.errors import UserError

    try:
        return resolve_device(config.hardware.device).startswith("cuda")
    except UserError:
        return has_cuda()
