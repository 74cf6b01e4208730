"""The configuration of a run: four frozen dataclasses, what each key means, and every check on it.

Files, presets and `--set` are read in `core/config/files.py`; this module knows values only.
Every key has a name of its own across the groups, so a flat mapping is a complete configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.config.setting import ConfigError, Problem, Setting, Value, checked, setting

STANDARD = "standard"
MAMBA = "mamba"
MAMBA2 = "mamba2"
ATTENTION_TYPES = (STANDARD, MAMBA, MAMBA2)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the hourglass. Per-layer keys hold one entry per layer once normalised."""

    n_layer: int = setting(6, "number of layers", unit="layers", low=1, high=512, fixed=True)
    n_embd: tuple[int, ...] = setting(
        (256, 192, 128, 128, 192, 256), "width of each layer", unit="channels", low=1, high=65536, fixed=True
    )
    n_head: tuple[int, ...] = setting(
        (4,) * 6, "attention heads of each layer", unit="heads", low=1, high=1024, fixed=True
    )
    attention_type: tuple[str, ...] = setting(
        (MAMBA, STANDARD, MAMBA, MAMBA, STANDARD, MAMBA),
        "mixer of each layer: standard attention, mamba (S6) or mamba2 (SSD)",
        choices=ATTENTION_TYPES,
        fixed=True,
    )
    block_size: int = setting(
        256,
        "tokens per chunk, and how far attention looks back",
        unit="tokens",
        low=1,
        high=1 << 20,
        fixed=True,
    )
    dropout: float = setting(0.0, "share of activations dropped while training", low=0.0, high=0.9)
    position: str = setting(
        "rope", "how attention knows order", choices=("rope", "learned", "none"), fixed=True
    )
    tie_embeddings: bool = setting(True, "embedding and head share one matrix", fixed=True)
    d_state: int = setting(16, "state size of a Mamba channel", low=4, high=256, fixed=True)
    d_conv: int = setting(
        4, "taps of a Mamba layer's causal convolution", unit="tokens", low=2, high=16, fixed=True
    )
    expand: int = setting(2, "inner width of a Mamba layer over its width", low=1, high=8, fixed=True)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths along the depth: into each layer, and out of the last, which returns to the first."""
        return (*self.n_embd, self.n_embd[0])


@dataclass(frozen=True)
class DataConfig:
    """Where the text is and how it becomes batches."""

    dataset_dir: str = setting("dataset", "folder of .txt files (.txt.gz too, subfolders included)")
    tokenizer: str = setting(
        "auto", "auto (own BPE), char, byte, gpt2, or the path of a tokenizer.json", fixed=True
    )
    vocab_size: int = setting(
        0,
        "vocabulary of the auto tokenizer, 0 = sized to the corpus",
        unit="tokens",
        low=0,
        high=1 << 20,
        fixed=True,
    )
    encoding: str = setting(
        "auto", "encoding of files without a mark that are not UTF-8: auto, or a name such as latin-1"
    )
    strip_gutenberg: bool = setting(True, "cut Project Gutenberg's header and licence", fixed=True)
    unwrap_lines: bool = setting(False, "join hard-wrapped lines into paragraphs", fixed=True)
    document_order: str = setting(
        "weighted",
        "which documents lanes jump to: weighted by length, or uniform while they last",
        choices=("weighted", "uniform"),
        fixed=True,
    )
    validation_fraction: float = setting(
        0.1, "share of the text held out for validation", above=0.0, high=0.5, fixed=True
    )
    carry_chunks: int = setting(
        8,
        "chunks a lane reads in a row before it jumps, 0 = to the end of the text",
        unit="chunks",
        low=0,
        high=1 << 20,
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How the model learns, how often it is looked at, and what is kept."""

    batch_size: int = setting(32, "lanes of text read in parallel", unit="lanes", low=1, high=1 << 16)
    gradient_accumulation_steps: int = setting(
        1, "batches added up before one optimiser step", unit="batches", low=1, high=4096
    )
    max_iters: int = setting(5000, "optimiser steps in all", unit="steps", low=1)
    learning_rate: float = setting(1e-3, "peak learning rate", above=0.0, high=1.0)
    min_learning_rate: float = setting(0.0, "learning rate at the end of the cosine", low=0.0, high=1.0)
    warmup_iters: int = setting(100, "steps of linear warm-up", unit="steps", low=0)
    weight_decay: float = setting(0.1, "decay of weight matrices", low=0.0, high=10.0)
    beta1: float = setting(0.9, "AdamW's average of gradients", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "AdamW's average of squared gradients", low=0.0, high=0.99999)
    grad_clip: float = setting(1.0, "largest gradient norm, 0 = no clipping", low=0.0, high=1e6)
    eval_interval: int = setting(250, "steps between evaluations", unit="steps", low=1)
    eval_iters: int = setting(20, "batches of each split an evaluation reads", unit="batches", low=1)
    checkpoint_interval: int = setting(
        0, "steps between checkpoints, 0 = at every evaluation", unit="steps", low=0
    )
    keep_last: int = setting(3, "newest checkpoints kept", unit="checkpoints", low=1)
    keep_best: int = setting(1, "checkpoints of lowest validation loss kept", unit="checkpoints", low=0)
    keep_every: int = setting(
        0, "also keep every checkpoint whose step divides by this, 0 = none", unit="steps", low=0
    )
    sample_interval: int = setting(0, "steps between samples, 0 = at every evaluation", unit="steps", low=0)
    sample_prompt: str = setting("", "what samples start from, empty = the start of a document")
    sample_tokens: int = setting(120, "length of a sample, 0 = no samples", unit="tokens", low=0, high=65536)
    max_bad_steps: int = setting(
        10,
        "steps in a row with a loss or gradient that is not finite before the run stops",
        unit="steps",
        low=1,
    )
    seed: int = setting(
        1337, "seed of initialisation, batches, dropout and the split", low=0, high=(1 << 63) - 1, fixed=True
    )


@dataclass(frozen=True)
class HardwareConfig:
    """What the run computes on, and how."""

    device: str = setting("auto", "auto, cpu, cuda (or cuda:1 ...), mps")
    dtype: str = setting(
        "auto",
        "arithmetic of the large products: auto is bfloat16 on CUDA, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: str = setting(
        "auto",
        "compile the training step with torch.compile: auto does so on CUDA in long runs",
        choices=("auto", "true", "false"),
    )
    capture: bool = setting(True, "capture the training step in a CUDA graph where possible")
    deterministic: bool = setting(False, "bit-for-bit repeatable arithmetic on CUDA, slower")
    activation_checkpointing: bool = setting(False, "recompute activations in the backward to save memory")
    threads: int = setting(0, "CPU threads, 0 = all cores", unit="threads", low=0, high=4096)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "hardware": HardwareConfig,
}
PER_LAYER = ("n_embd", "n_head", "attention_type")


def _settings() -> Iterator[Setting]:
    for group, cls in GROUPS.items():
        for item in dataclasses.fields(cls):
            sample = item.default[0] if isinstance(item.default, tuple) else item.default
            default: Any = item.default
            yield Setting(item.name, group, type(sample), default, item.name in PER_LAYER, **item.metadata)


SETTINGS: dict[str, Setting] = {item.key: item for item in _settings()}


def nearest_key(key: str) -> str:
    """A hint naming the known key that looks most like `key`, or how to find them all."""
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    return f'the key "{near[0]}"' if near else "one of " + ", ".join(SETTINGS)


def build(values: Mapping[str, object], source: str = "configuration") -> RunConfig:
    """Make a RunConfig from flat values; missing keys take the default.

    Single values of per-layer keys are spread over the layers; `n_layer` may be left out when a
    list says it. Raises ConfigError listing every problem.
    """
    config, problems = check(values)
    if problems:
        raise ConfigError(problems, source)
    return config


def check(values: Mapping[str, object]) -> tuple[RunConfig, list[Problem]]:
    """Like `build`, but returns the problems; the configuration is only meaningful without any."""
    problems: list[Problem] = []
    clean: dict[str, Any] = {}
    for key, value in values.items():
        item = SETTINGS.get(key)
        if item is None:
            problems.append(Problem(key, value, f"{nearest_key(key)} (this key is unknown)"))
        elif item.per_layer and isinstance(value, (list, tuple)):
            entries = [checked(item, entry, problems, f"{key}[{i}]") for i, entry in enumerate(value)]
            if not entries:
                problems.append(Problem(key, value, item.accepted))
            else:
                clean[key] = tuple(entries)
        else:
            clean[key] = checked(item, value, problems)
    layers = _layer_count(clean, problems)
    for key in PER_LAYER:
        clean[key] = _spread(key, clean.get(key), layers, values, problems)
    clean["n_layer"] = layers
    groups = {
        group: cls(**{f.name: clean[f.name] for f in dataclasses.fields(cls) if f.name in clean})
        for group, cls in GROUPS.items()
    }
    config = RunConfig(**groups)
    if not problems:
        problems += _across_keys(config)
    return config, problems


def _layer_count(clean: Mapping[str, Any], problems: list[Problem]) -> int:
    lists = {key: len(clean[key]) for key in PER_LAYER if isinstance(clean.get(key), tuple)}
    layers = clean.get("n_layer", next(iter(lists.values()), SETTINGS["n_layer"].default))
    most = SETTINGS["n_layer"].high
    for key, length in lists.items():
        if most is not None and length > most:
            problems.append(Problem(key, f"{length} entries", f"at most {most:g} entries, one per layer"))
            layers = SETTINGS["n_layer"].default
        elif length != layers:
            problems.append(Problem(key, f"{length} entries", f"{layers} entries, one per layer"))
    return int(layers)


def _spread(
    key: str, value: Any, layers: int, given: Mapping[str, object], problems: list[Problem]
) -> tuple[Any, ...]:
    """One entry per layer, from a list, a single value, or the default's pattern."""
    if isinstance(value, tuple):
        return value if len(value) == layers else (value * layers)[:layers]
    if value is not None:
        return (value,) * layers
    default = SETTINGS[key].default
    assert isinstance(default, tuple)
    if layers == len(default):
        return default
    # The default hourglass fits its own depth only; another depth gets its plainest form.
    if key == "attention_type":
        return tuple(MAMBA if layer % 2 == 0 else STANDARD for layer in range(layers))
    return (default[0],) * layers


def _across_keys(config: RunConfig) -> list[Problem]:
    """Checks that need more than one key."""
    model, training = config.model, config.training
    problems = []
    for layer, (width, heads, kind) in enumerate(zip(model.n_embd, model.n_head, model.attention_type)):
        if kind == STANDARD and width % heads:
            problems.append(
                Problem(f"n_head[{layer}]", heads, f"a number that divides the layer's width {width} evenly")
            )
        elif kind == STANDARD and model.position == "rope" and (width // heads) % 2:
            problems.append(
                Problem(f"n_head[{layer}]", heads, f"heads of even size for rope (here {width // heads})")
            )
        elif kind == MAMBA2 and (width * model.expand) % heads:
            problems.append(
                Problem(f"n_head[{layer}]", heads, f"a divisor of the inner width {width * model.expand}")
            )
    if training.min_learning_rate > training.learning_rate:
        problems.append(
            Problem(
                "min_learning_rate",
                training.min_learning_rate,
                f"at most learning_rate, {training.learning_rate:g}",
            )
        )
    return problems


def flat(config: RunConfig) -> dict[str, Value]:
    """The configuration as one flat mapping; `build(flat(config)) == config`."""
    return {
        item.name: getattr(getattr(config, group), item.name)
        for group, cls in GROUPS.items()
        for item in dataclasses.fields(cls)
    }


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Value, Value]]:
    """The keys whose values differ, with both values."""
    before, after = flat(old), flat(new)
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}
