"""The configuration of a run: four frozen dataclasses, what each key means, and every check on it.

`core/config/files.py` reads files, presets and `--set`; this module only sees values. Key names are unique
across the groups, so one flat mapping is a complete configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config.setting import MOST_PROBLEMS, ConfigError, Problem, Setting, Value, checked, setting

STANDARD = "standard"
MAMBA = "mamba"
MAMBA2 = "mamba2"
ATTENTION_TYPES = (STANDARD, MAMBA, MAMBA2)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model. Per-layer keys hold one entry per layer after `check`."""

    n_layer: int = setting(6, "number of layers", unit="layers", low=1, high=512, fixed=True)
    n_embd: tuple[int, ...] = setting(
        (256, 192, 128, 128, 192, 256), "width of each layer", unit="channels", low=1, high=65536, fixed=True
    )
    n_head: tuple[int, ...] = setting(
        (4,) * 6, "attention heads of each layer", unit="heads", low=1, high=1024, fixed=True
    )
    attention_type: tuple[str, ...] = setting(
        (MAMBA, STANDARD, MAMBA, MAMBA, STANDARD, MAMBA),
        "mixer of each layer: standard (attention), mamba (S6) or mamba2 (SSD)",
        choices=ATTENTION_TYPES,
        fixed=True,
    )
    block_size: int = setting(
        256,
        "tokens per training chunk, and how many tokens attention can see",
        unit="tokens",
        low=1,
        high=1 << 20,
        fixed=True,
    )
    dropout: float = setting(
        0.0, "fraction of each layer's contributions set to zero during training", low=0.0, high=0.9
    )
    mixer_dropout: float = setting(
        0.0,
        "fraction of what a mixer gives to its output projection set to zero during training",
        low=0.0,
        high=0.9,
    )
    position: str = setting(
        "rope", "position encoding of attention layers", choices=("rope", "learned", "none"), fixed=True
    )
    tie_embeddings: bool = setting(True, "share one matrix between embedding and output layer", fixed=True)
    d_state: int = setting(16, "state size per channel of a Mamba layer", low=4, high=256, fixed=True)
    d_conv: int = setting(
        4, "width of a Mamba layer's causal convolution", unit="tokens", low=2, high=16, fixed=True
    )
    expand: int = setting(
        2, "inner width of a Mamba layer as a multiple of its width", low=1, high=8, fixed=True
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths along the depth: into each layer, and out of the last, which returns to the first."""
        return (*self.n_embd, self.n_embd[0])


@dataclass(frozen=True)
class DataConfig:
    """Where the text is and how it becomes batches."""

    dataset_dir: str = setting("dataset", "folder of .txt and .txt.gz files, including subfolders")
    tokenizer: str = setting(
        "auto",
        "auto (BPE learned from the text), char, byte, gpt2, or a path to a tokenizer.json",
        fixed=True,
    )
    vocab_size: int = setting(
        0,
        "vocabulary size of the auto tokenizer, auto = chosen from the amount of text",
        unit="tokens",
        low=0,
        high=1 << 20,
        fixed=True,
        zero="auto",
    )
    encoding: str = setting(
        "auto",
        "encoding of files without a BOM that are not UTF-8: auto (guess), or a name such as latin-1",
    )
    strip_gutenberg: bool = setting(True, "remove Project Gutenberg's header and license", fixed=True)
    unwrap_lines: bool = setting(False, "join hard-wrapped lines into paragraphs", fixed=True)
    document_marks: str = setting(
        "note",
        "marks like <|endoftext|> in the text: note (keep as text) or cut (begin a document there)",
        choices=("note", "cut"),
        fixed=True,
    )
    outside_links: bool = setting(False, "also read texts that links lead to outside the dataset folder")
    document_order: str = setting(
        "weighted",
        "order of training documents: weighted (by length) or uniform (taking turns)",
        choices=("weighted", "uniform"),
        fixed=True,
    )
    validation_fraction: float = setting(
        0.1, "fraction of the text used for validation, never for training", above=0.0, high=0.5, fixed=True
    )
    carry_chunks: int = setting(
        8,
        "consecutive chunks before a batch row jumps elsewhere, 0 = read to the end",
        unit="chunks",
        low=0,
        high=1 << 20,
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How the model learns, how often it is evaluated, and which checkpoints are kept."""

    batch_size: int = setting(32, "rows in a batch: texts read in parallel", unit="rows", low=1, high=1 << 16)
    gradient_accumulation_steps: int = setting(
        1, "batches whose gradients are added up for one optimizer step", unit="batches", low=1, high=4096
    )
    auto: str = setting(
        "",
        "settings chosen by the text, the device and the time: any of n_embd (all layers), dropout, "
        "mixer_dropout, batch_size",
    )
    time_budget: float = setting(
        0.0,
        "minutes that training may take; the run cools down in time to end within them",
        unit="minutes",
        low=0.0,
        high=1e6,
        zero="none",
    )
    max_iters: int = setting(
        5000,
        "optimizer steps in total, auto = as many as suit the text",
        unit="steps",
        low=0,
        zero="auto",
    )
    learning_rate: float = setting(1e-3, "peak learning rate", above=0.0, high=1.0)
    min_learning_rate: float = setting(0.0, "learning rate at the end of training", low=0.0, high=1.0)
    schedule: str = setting(
        "constant",
        "learning rate after warm-up: constant until a linear cool-down, or a cosine over all steps",
        choices=("constant", "cosine"),
    )
    cooldown_iters: int = setting(
        0,
        "steps of the cool-down, auto = a quarter of max_iters",
        unit="steps",
        low=0,
        high=1 << 31,
        zero="auto",
    )
    patience: int = setting(
        0,
        "evaluations without a better validation loss before the cool-down begins, 0 = never early",
        unit="evaluations",
        low=0,
        high=1 << 31,
    )
    average_decay: float = setting(
        0.0,
        "decay of the moving average of the weights that is evaluated and kept, 0 = no average",
        low=0.0,
        high=0.99999,
    )
    teacher: str = setting(
        "",
        "run folder or checkpoint whose model's predictions this one also learns from, empty = none",
        fixed=True,
    )
    teacher_share: float = setting(
        0.5, "fraction of the loss that is learned from the teacher instead of the text", low=0.0, high=1.0
    )
    warmup_iters: int = setting(100, "steps of linear learning-rate warm-up", unit="steps", low=0)
    weight_decay: float = setting(0.1, "weight decay of matrices (AdamW)", low=0.0, high=10.0)
    decay_small_matrices: bool = setting(
        False, "also decay the convolution and step-size matrices of Mamba layers"
    )
    beta1: float = setting(0.9, "AdamW's decay rate for the mean of gradients", low=0.0, high=0.9999)
    beta2: float = setting(
        0.95, "AdamW's decay rate for the mean of squared gradients", low=0.0, high=0.99999
    )
    grad_clip: float = setting(1.0, "clip gradients to this norm, 0 = no clipping", low=0.0, high=1e6)
    eval_interval: int = setting(250, "steps between evaluations", unit="steps", low=1)
    eval_iters: int = setting(20, "batches read from each split per evaluation", unit="batches", low=1)
    checkpoint_interval: int = setting(
        0, "steps between checkpoints, auto = at every evaluation", unit="steps", low=0, zero="auto"
    )
    keep_last: int = setting(3, "how many of the latest checkpoints to keep", unit="checkpoints", low=1)
    keep_best: int = setting(
        1, "how many checkpoints of lowest validation loss to keep", unit="checkpoints", low=0
    )
    keep_every: int = setting(
        0, "also keep checkpoints at multiples of this step, 0 = none", unit="steps", low=0
    )
    sample_interval: int = setting(
        0, "steps between text samples, auto = at every evaluation", unit="steps", low=0, zero="auto"
    )
    sample_prompt: str = setting("", "prompt of text samples, empty = start of a document")
    sample_tokens: int = setting(
        120, "length of a text sample, 0 = no samples", unit="tokens", low=0, high=65536
    )
    max_bad_steps: int = setting(
        10,
        "stop after this many steps in a row with a non-finite loss or gradient",
        unit="steps",
        low=1,
    )
    seed: int = setting(
        1337,
        "random seed of initialization, batches, dropout and the split",
        low=0,
        high=(1 << 63) - 1,
        fixed=True,
    )


@dataclass(frozen=True)
class HardwareConfig:
    """The device, its arithmetic, and how the training step is executed."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1 (the second GPU), or mps")
    dtype: str = setting(
        "auto",
        "arithmetic of matrix products: auto is bfloat16 on CUDA, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: str = setting(
        "auto",
        "use torch.compile for the training step: auto does so for long runs on CUDA",
        choices=("auto", "true", "false"),
    )
    capture: bool = setting(True, "run the training step as a CUDA graph where possible")
    deterministic: bool = setting(False, "bit-for-bit repeatable arithmetic on CUDA (slower)")
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, slower"
    )
    ranks: int = setting(
        1,
        "processes that train together on parts of each batch, all = one for every GPU",
        unit="ranks",
        low=0,
        high=4096,
        zero="all",
    )
    threads: int = setting(
        0, "CPU threads, auto = one per core", unit="threads", low=0, high=4096, zero="auto"
    )


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration of a run."""

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
AUTOMATIC = ("n_embd", "dropout", "mixer_dropout", "batch_size")
"""The settings that `auto` may name; "auto" as their value names them there. n_embd stands for all layers."""


def _settings() -> Iterator[Setting]:
    for group, cls in GROUPS.items():
        for item in dataclasses.fields(cls):
            sample = item.default[0] if isinstance(item.default, tuple) else item.default
            default: Any = item.default
            yield Setting(item.name, group, type(sample), default, item.name in PER_LAYER, **item.metadata)


SETTINGS: dict[str, Setting] = {item.key: item for item in _settings()}


def nearest_key(key: str, before: Sequence[Problem] = ()) -> str:
    """The known key most similar to `key`, or all keys, as a phrase for an error after those `before`."""
    if len(before) >= MOST_PROBLEMS:
        return "a known key"  # nobody reads it, and a search takes a millisecond
    near = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    return f'the key "{near[0]}"' if near else "one of " + ", ".join(SETTINGS)


def build(values: Mapping[str, object], source: str = "configuration") -> RunConfig:
    """A RunConfig from flat values; missing keys take their defaults.

    A single value of a per-layer key applies to all layers; `n_layer` may be omitted if a list implies it.
    Raises ConfigError that lists every problem.
    """
    config, problems = check(values)
    if problems:
        raise ConfigError(problems, source)
    return config


# What the program did before there was a key for it: frozen configurations without the key date from then.
EARLIER: dict[str, object] = {"schedule": "cosine", "decay_small_matrices": True}


def build_frozen(values: Mapping[str, object], source: str) -> RunConfig:
    """Like `build`, for the configuration of a run or checkpoint, which may be older than some keys."""
    return build({**EARLIER, **values}, source)


def check(values: Mapping[str, object]) -> tuple[RunConfig, list[Problem]]:
    """Like `build`, but returns the problems instead of raising; if there are any, the configuration is
    unusable.
    """
    problems: list[Problem] = []
    clean: dict[str, Any] = {}
    values = _named_automatic(values, problems)
    for key, value in values.items():
        item = SETTINGS.get(key)
        if item is None:
            problems.append(Problem(key, value, f"{nearest_key(key, problems)} (this key is unknown)"))
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


def _named_automatic(values: Mapping[str, object], problems: list[Problem]) -> Mapping[str, object]:
    """The values with every "auto" of AUTOMATIC moved to the key `auto`, in the order of AUTOMATIC."""
    given = values.get("auto", "")
    words = given.replace(",", " ").split() if isinstance(given, str) else []
    wrong = [word for word in words if word not in AUTOMATIC]
    if wrong:
        problems.append(Problem("auto", wrong[0], "any of " + ", ".join(AUTOMATIC)))
    named = {key for key in AUTOMATIC if values.get(key) == "auto"}
    if not words and not named:
        return values
    kept = {key: value for key, value in values.items() if key not in named}
    return kept | {"auto": " ".join(key for key in AUTOMATIC if key in named or key in words)}


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
    # The default widths and types fit only the default depth; other depths get a uniform model.
    if key == "attention_type":
        return tuple(MAMBA if layer % 2 == 0 else STANDARD for layer in range(layers))
    return (default[0],) * layers


def _across_keys(config: RunConfig) -> list[Problem]:
    """Problems between keys."""
    model, training = config.model, config.training
    problems = []
    for layer, (width, heads, kind) in enumerate(zip(model.n_embd, model.n_head, model.attention_type)):
        if kind == STANDARD and width % heads:
            problems.append(Problem(f"n_head[{layer}]", heads, f"a divisor of the layer's width, {width}"))
        elif kind == STANDARD and model.position == "rope" and (width // heads) % 2:
            problems.append(
                Problem(
                    f"n_head[{layer}]",
                    heads,
                    f"a number of heads whose size is even, as rope needs (size is now {width // heads})",
                )
            )
        elif kind == MAMBA2 and (width * model.expand) % heads:
            problems.append(
                Problem(
                    f"n_head[{layer}]", heads, f"a divisor of the layer's inner width, {width * model.expand}"
                )
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
