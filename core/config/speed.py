"""How long a run takes here: a formula, corrected by this machine's earlier measurements.

The formula counts floating-point operations and the overhead of every step and layer. On unknown machines it
is off by a factor of two or more. So every run and every `bench` stores its measurements in the user's cache
folder; the most similar ones correct the formula, weighted by their distance.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.config import estimates
from core.config.run_time import Costs, Duration, duration
from core.config.schema import ATTENTION_TYPES, MAMBA, MAMBA2, STANDARD, RunConfig, build, flat
from core.errors import UserError
from core.system.files import make_own_folder, read_limited, write_atomic
from core.system.folders import cache_root
from core.system.hardware import computing_threads, describe, resolve_device

FILE = "speeds.json"
LARGEST_FILE = 4 << 20
MOST_MEASUREMENTS = 60


@dataclass(frozen=True)
class Rates:
    """The formula's constants for one kind of device: seconds, and floating-point operations per second."""

    step: float
    layer: Mapping[str, float]
    flops: float
    number: Mapping[str, float]
    """Seconds per activation that a layer stores, per token: everything that isn't a matrix product."""
    head_flops: float
    parameter: float
    """Seconds per step and parameter: the optimizer."""
    evaluation: float
    """The share of a training step's time, for as many tokens."""
    sample_layer: float
    save_byte: float
    """To copy a byte of a checkpoint, which holds training up."""
    write_byte: float
    """To put it on the disk, beside training or at the end."""
    start: float
    """Until the trainer can take a step: its libraries, the model."""
    first_step: float
    read_byte: float
    """To read and encode a byte of new text."""
    learn_byte: float
    """To learn the vocabulary `auto` from a byte of text."""
    end: float
    framework_bytes: int
    memory_factor: float
    """The share of the estimated memory that is live besides it."""


# cpu: one core of 2025; cuda: H100 (benchmarks/RESULTS.md). Other devices are corrected by measurements.
RATES = {
    "cpu": Rates(
        step=2e-3,
        layer={STANDARD: 4.5e-3, MAMBA: 1e-2, MAMBA2: 5.5e-3},
        flops=4.8e10,
        number={STANDARD: 1e-8, MAMBA: 2.3e-8, MAMBA2: 0.9e-8},
        head_flops=2.6e10,
        parameter=1.5e-9,
        evaluation=0.33,
        sample_layer=1.4e-3,
        save_byte=4e-9,
        write_byte=4e-9,
        start=4.0,
        first_step=0.5,
        read_byte=2.5e-7,
        learn_byte=1.1e-6,
        end=0.5,
        framework_bytes=532 << 20,
        memory_factor=1.55,
    ),
    "cuda": Rates(
        step=2e-4,
        layer={STANDARD: 1.1e-4, MAMBA: 1.4e-4, MAMBA2: 1.4e-4},
        flops=5e14,
        number={STANDARD: 2.5e-12, MAMBA: 3.5e-12, MAMBA2: 3e-12},
        head_flops=3.5e14,
        parameter=1.2e-11,
        evaluation=0.8,
        sample_layer=4e-5,
        save_byte=1e-9,
        write_byte=4e-9,
        start=12.0,
        first_step=25.0,
        read_byte=1.5e-7,
        learn_byte=7e-7,
        end=1.5,
        framework_bytes=600 << 20,
        memory_factor=1.2,
    ),
}
CORES_EXPONENT = 0.85
"""How much faster several cores are than one."""
COMPILE_SECONDS = 40.0
FORMULA_WEIGHT = 0.02


@dataclass(frozen=True)
class Measurement:
    """What one run or `bench` measured, for one configuration on one device."""

    device: str
    config: dict[str, Any]
    vocab_size: int
    costs: Costs


def device_key(config: RunConfig) -> str:
    """What measurements belong to: this device with this arithmetic and number of threads.

    Raises UserError.
    """
    name = resolve_device(config.hardware.device)
    if name == "cpu":
        device = f"cpu of {platform.node()}, {computing_threads(config.hardware.threads)} threads"
    else:
        device = describe(name).description
    return f"{device}, {config.hardware.dtype}"


class Speeds:
    """What is known about one device, for estimates. Reads the cache once, on creation."""

    def __init__(
        self, device: str, kind: str, threads: int, measurements: Sequence[Measurement] = ()
    ) -> None:
        self.kind = "cuda" if kind.startswith("cuda") else "cpu"
        self.threads = threads
        self.known = [
            (features(_config(one), one.vocab_size), one, self.formula(_config(one), one.vocab_size))
            for one in measurements
            if one.device == device
        ]

    @classmethod
    def here(cls, config: RunConfig) -> Speeds:
        """A configuration's device, with what this machine remembers about it."""
        try:
            kind, key = resolve_device(config.hardware.device), device_key(config)
        except UserError:
            kind, key = "cpu", ""
        return cls(key, kind, computing_threads(config.hardware.threads), load())

    def formula(self, config: RunConfig, vocab_size: int) -> Costs:
        """The formula's result."""
        rates, model = RATES[self.kind], config.model
        faster = self.threads**CORES_EXPONENT if self.kind == "cpu" else 1.0
        tokens = config.training.batch_size // estimates.rank_count(config) * model.block_size
        layers = list(zip(model.attention_type, estimates.layers(model, vocab_size)))
        head = 2 * estimates.padded_vocabulary(vocab_size) * model.n_embd[0]
        work = sum(
            tokens * (3 * layer.flops / rates.flops + layer.activations * rates.number[kind])
            for kind, layer in layers
        )
        work = (work + 3 * tokens * head / rates.head_flops) / faster
        parameters = estimates.parameters(model, vocab_size)
        batches = config.training.gradient_accumulation_steps
        step = batches * (rates.step + sum(rates.layer[kind] for kind, _ in layers) + work)
        compiling = self.kind == "cuda" and config.hardware.compile == "true"
        kept = 16 if config.training.average_decay else 12
        memory = estimates.training_memory(config, vocab_size, cuda=self.kind == "cuda")
        return Costs(
            step=step + rates.parameter * parameters,
            evaluation_token=rates.evaluation * step / batches / tokens,
            sample_token=rates.sample_layer * model.n_layer + 2 * parameters / 1e10 * (self.kind == "cpu"),
            save=rates.save_byte * parameters * kept,
            start=rates.start,
            first_step=rates.first_step + (COMPILE_SECONDS if compiling else 0.0),
            prepare_byte=rates.read_byte + rates.learn_byte * (config.data.tokenizer == "auto"),
            end=rates.end + rates.write_byte * parameters * kept,
            memory=rates.framework_bytes + memory * rates.memory_factor,
        )

    def costs(self, config: RunConfig, vocab_size: int) -> tuple[Costs, float]:
        """The formula corrected by measurements, and the distance of the nearest measurement."""
        wanted = self.formula(config, vocab_size)
        place = features(config, vocab_size)
        near = [(distance(place, features), one.costs, said) for features, one, said in self.known]
        corrected = {}
        for name, value in asdict(wanted).items():
            weight, total = FORMULA_WEIGHT, 0.0
            for away, measured, said in near:
                if getattr(measured, name) > 0 and getattr(said, name) > 0:
                    closeness = 1 / (0.01 + away) ** 2 / 100
                    total += closeness * math.log(getattr(measured, name) / getattr(said, name))
                    weight += closeness
            corrected[name] = value * math.exp(total / weight)
        nearest = min((away for away, measured, _ in near if measured.step), default=math.inf)
        return Costs(**corrected), nearest

    def duration(
        self, config: RunConfig, vocab_size: int, text_tokens: tuple[int, int], new_bytes: int = 0
    ) -> Duration:
        """A whole run with `max_iters` steps over (training, validation) tokens.

        Of the text `new_bytes` have still to be prepared.
        """
        costs, nearest = self.costs(config, vocab_size)
        return duration(config, costs, text_tokens, nearest, new_bytes=new_bytes)


def features(config: RunConfig, vocab_size: int) -> tuple[float, ...]:
    """A configuration's coordinates, so that distances mean different speeds."""
    model = config.model
    shares = [model.attention_type.count(kind) / model.n_layer for kind in ATTENTION_TYPES]
    return (
        math.log(estimates.flops_per_token(model, vocab_size)),
        0.5 * math.log(config.training.batch_size * model.block_size),
        0.5 * math.log(model.n_layer),
        *shares,
        1.0 if config.hardware.activation_checkpointing else 0.0,
    )


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """How different two configurations are; 0 for the same shape."""
    return math.dist(one, other)


def _config(measurement: Measurement) -> RunConfig:
    return build(measurement.config)


def load() -> list[Measurement]:
    """What this machine remembers, without entries that are damaged or from another version."""
    try:
        rows = json.loads(read_limited(cache_root() / FILE, LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return []
    measurements = []
    for row in rows if isinstance(rows, list) else []:
        try:
            costs = {key: float(value) for key, value in row["costs"].items()}
            if not all(math.isfinite(value) and value >= 0 for value in costs.values()):
                continue
            build(row["config"])
            vocab_size = int(row["vocab_size"])
            if 0 < vocab_size < 1 << 24:
                measurements.append(
                    Measurement(str(row["device"]), row["config"], vocab_size, Costs(**costs))
                )
        except (KeyError, TypeError, ValueError, AttributeError, UserError):
            continue
    return measurements


def remember(config: RunConfig, vocab_size: int, costs: Costs) -> None:
    """Store a measurement, in place of an earlier one of the same shape. On a full disk nothing is stored."""
    try:
        key = device_key(config)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in flat(config).items() if k in KEPT}
        plain["tokenizer"] = "auto" if config.data.tokenizer == "auto" else "byte"
        new = Measurement(key, plain, vocab_size, costs)
        place = features(config, vocab_size)
        kept = []
        for one in load():
            same = one.device == key and distance(features(_config(one), one.vocab_size), place) < 0.02
            if same:  # values that this measurement lacks are kept
                known = {name: value for name, value in asdict(one.costs).items() if value}
                measured = {name: value for name, value in asdict(new.costs).items() if value}
                new = replace(new, costs=Costs(**{**known, **measured}))
            else:
                kept.append(one)
        rows = [asdict(one) for one in [*kept, new][-MOST_MEASUREMENTS:]]
        make_own_folder(cache_root())
        write_atomic(cache_root() / FILE, json.dumps(rows).encode())
    except (OSError, UserError):
        return


KEPT = (
    "n_layer", "n_embd", "n_head", "attention_type", "block_size", "tie_embeddings", "d_state", "d_conv",
    "expand", "position", "batch_size", "gradient_accumulation_steps", "average_decay", "compile",
    "activation_checkpointing",
)  # fmt: skip
"""The settings that determine how fast a run is, besides whether a vocabulary is learned: no paths,
and nothing about the text."""
