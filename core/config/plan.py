"""What a run should be, given its text, its device and its time: size, dropout, batch and steps.

Only `plan` decides values that a configuration leaves open: `max_iters` if it is "auto", and the settings
named in `auto`. The trainer calls it with the text it has read, the console with what is known before. All
numbers are in the tables below; docs/recipe.md says what was measured, docs/planning.md explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.config import estimates
from core.config.changes import replace
from core.config.schema import MAMBA, STANDARD, RunConfig
from core.config.speed import Speeds

# ---- How long: about how many passes over the text until validation no longer improves. More passes over a
# small text make a model that recites it. How many passes help depends on dropout more than on anything else;
# the first rule went through three points: about 8 without, 25 with 0.3.
PASSES_WITHOUT_DROPOUT = 8
PASSES_PER_DROPOUT = 57
LARGER_TEXT = -0.2
"""Exponent of the text's size in MB: larger texts need fewer passes."""
CPU_TOKENS = 6_000_000
"""The tokens that a CPU reads in 25 minutes at 4,000 tokens per second: its longest run without a time
budget."""
LEAST_EVALUATIONS = 8


@dataclass(frozen=True)
class Shape:
    """A model of the preset `book` and how it is trained. Widths and types have one entry per layer."""

    widths: tuple[int, ...]
    heads: int
    dropout: float
    mixer_dropout: float
    batch_size: int
    kinds: tuple[str, ...] = ()
    measured: bool = False
    """Whether an experiment chose it (docs/recipe.md), or a rule."""

    def changes(self, automatic: Sequence[str]) -> dict[str, object]:
        """This shape's values for the settings among `automatic`."""
        values: dict[str, object] = {
            "dropout": self.dropout,
            "mixer_dropout": self.mixer_dropout,
            "batch_size": self.batch_size,
        }
        changes = {key: value for key, value in values.items() if key in automatic}
        if "n_embd" in automatic:
            kinds = self.kinds or tuple((MAMBA, STANDARD)[i % 2] for i in range(len(self.widths)))
            changes |= {"n_embd": self.widths, "attention_type": kinds, "n_head": self.heads}
        return changes


# ---- How large: for texts of up to this many MB, the smallest model first. Only those marked were measured
# (docs/recipe.md); the others follow about 8 M parameters x (MB)^0.45, and dropout falls as passes do.
SHAPES: dict[str, tuple[tuple[float, Shape], ...]] = {
    "cpu": (
        (0.1, Shape((64, 64, 64, 64), 4, 0.1, 0.1, 8)),
        (0.3, Shape((96, 96, 96, 96), 4, 0.0, 0.0, 16)),
        (
            math.inf,
            Shape(
                (128, 128, 96, 96, 128, 128), 4, 0.0, 0.0, 16,
                (MAMBA, STANDARD, MAMBA, MAMBA, STANDARD, MAMBA), measured=True,
            ),
        ),
    ),
    "cuda": (
        (0.3, Shape((192,) * 4, 4, 0.3, 0.3, 32)),
        (3.0, Shape((320,) * 6, 5, 0.3, 0.3, 64, measured=True)),
        (20.0, Shape((416,) * 8, 8, 0.2, 0.2, 128, measured=True)),
        (100.0, Shape((512,) * 10, 8, 0.1, 0.1, 128, measured=True)),
        (math.inf, Shape((640,) * 12, 10, 0.0, 0.0, 128)),
    ),
}  # fmt: skip
SUITED_MILLIONS, SUITED_EXPONENT, SUITED_EXPONENT_BELOW_1_MB = 8.0, 0.45, 0.6
"""Parameters that suit a text: millions at 1 MB, and the exponents of its size in MB."""
FAR_FROM_SUITED = 2.2
"""A hint is shown from this factor on."""
ENOUGH_TOKENS_PER_PARAMETER = 4
"""If time is short: a model that reads fewer tokens than this is too large for it."""
BUDGET_MARGIN = 1.2
"""Steps are planned for this much more than the time budget: the clock ends the run, not the estimate."""

# ---- How good: validation loss at the end of a run, (MB, nats per character, half its spread), by MB.
EXPECTED: dict[str, tuple[tuple[float, float, float], ...]] = {
    "cuda": ((1.0, 1.421, 0.01),),
}
BEYOND_TABLE = 3.0
"""A text that is outside the table's sizes by this factor has no expected loss."""


@dataclass(frozen=True)
class TextSize:
    """The training side of a text. `exact` if bytes and tokens are counted and not estimated."""

    bytes: int
    tokens: int
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """The decisions. `config` contains all of them, with nothing left open."""

    config: RunConfig
    text: TextSize
    parameters: int
    suited: int
    """The number of parameters that suits the text."""
    cuda: bool
    expected: tuple[float, float] | None
    """Lowest and highest expected validation loss in nats per character; None if unknown."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.config.training.max_iters

    @property
    def passes(self) -> float:
        """How often the text is read."""
        return self.steps * tokens_per_step(self.config) / max(1, self.text.tokens)

    @property
    def hint(self) -> str:
        """A sentence if the model is far from what suits the text; "" if it isn't."""
        ratio = self.parameters / max(1, self.suited)
        # A CPU has no time for a model that would suit the text.
        least = 1 / FAR_FROM_SUITED if self.cuda else 0.0
        if least < ratio < FAR_FROM_SUITED:
            return ""
        what = f"{_millions(self.parameters)} parameters for {megabytes(self.text.bytes)} of text"
        why = "it will learn it by heart" if ratio > 1 and self.passes > 2 else ""
        why = why or ("more than it needs" if ratio > 1 else "it could learn more")
        return f"{what}: {why}; about {_millions(self.suited)} suits it (docs/shelf-size.md)"


Seconds = Callable[[RunConfig], float]
"""How long a run of this configuration takes, in seconds."""


def seconds_by(speeds: Speeds, vocab_size: int, text_tokens: tuple[int, int]) -> Seconds:
    """An estimate from measurements, over (training, validation) tokens, of what a time budget counts."""
    return lambda config: speeds.duration(without_budget(config), vocab_size, text_tokens).budgeted


def plan(
    config: RunConfig, text: TextSize, *, cuda: bool, vocab_size: int, seconds: Seconds | None = None
) -> Plan:
    """Decide what `config` leaves open. `seconds` is needed only for a time budget, and ignores it.

    Pure: the same arguments give the same plan. Values that the configuration sets are never changed.
    """
    budget = config.training.time_budget * 60 * BUDGET_MARGIN if seconds else 0.0
    device = "cuda" if cuda else "cpu"
    candidates = _candidates(config, text, device)
    chosen = with_steps(candidates[0], text.bytes, text.tokens, cpu=not cuda)
    if budget and seconds is not None:
        for candidate in candidates:
            whole = with_steps(candidate, text.bytes, text.tokens, cpu=False)
            chosen = _within(whole, budget, seconds) if not config.training.max_iters else whole
            tokens = chosen.training.max_iters * tokens_per_step(chosen)
            enough = ENOUGH_TOKENS_PER_PARAMETER * estimates.parameters(chosen.model, vocab_size)
            if seconds(chosen) <= budget and tokens >= min(
                enough, whole.training.max_iters * tokens_per_step(whole)
            ):
                break
    return Plan(
        chosen,
        text,
        estimates.parameters(chosen.model, vocab_size),
        suited_parameters(text.bytes),
        cuda,
        expected_loss(text.bytes, device),
    )


def _candidates(config: RunConfig, text: TextSize, device: str) -> list[RunConfig]:
    """The configuration with the shape that suits the text, then with smaller shapes."""
    automatic = config.training.auto.split()
    if not automatic:
        return [config]
    table = SHAPES[device]
    suited = next(i for i, (most, _) in enumerate(table) if text.bytes / 1e6 <= most)
    shapes = (
        [shape for _, shape in table[: suited + 1]][::-1] if "n_embd" in automatic else [table[suited][1]]
    )
    return [replace(config, **shape.changes(automatic), auto="") for shape in shapes]


def _within(config: RunConfig, budget: float, seconds: Seconds) -> RunConfig:
    """The number of steps, limited to what fits a time budget."""
    low, high = LEAST_EVALUATIONS, config.training.max_iters
    if seconds(config) <= budget or high <= low:
        return config
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if seconds(with_max_iters(config, middle)) <= budget:
            low = middle
        else:
            high = middle
    return with_max_iters(config, low)


def without_budget(config: RunConfig) -> RunConfig:
    """The configuration without its time budget."""
    return replace(config, time_budget=0.0) if config.training.time_budget else config


def tokens_per_step(config: RunConfig) -> int:
    """Tokens per optimizer step."""
    training = config.training
    return training.batch_size * config.model.block_size * training.gradient_accumulation_steps


def useful_passes(config: RunConfig, text_bytes: int) -> float:
    """About how many passes over a training text it takes until validation no longer improves."""
    dropout = min(config.model.mixer_dropout, 0.3)
    megabytes = max(text_bytes / 1e6, 0.1)
    return (PASSES_WITHOUT_DROPOUT + PASSES_PER_DROPOUT * dropout) * min(1.5, megabytes**LARGER_TEXT)


def with_steps(config: RunConfig, text_bytes: int, text_tokens: int, *, cpu: bool) -> RunConfig:
    """The configuration with `max_iters`, and evaluations often enough, if it leaves them to the text."""
    if config.training.max_iters:
        return config
    tokens = useful_passes(config, text_bytes) * text_tokens
    if cpu:
        tokens = min(tokens, CPU_TOKENS)
    return with_max_iters(config, max(LEAST_EVALUATIONS, round(tokens / tokens_per_step(config))))


def with_max_iters(config: RunConfig, steps: int) -> RunConfig:
    """The configuration with this many steps, a warm-up that fits them, and evaluations often enough."""
    training = config.training
    return replace(
        config,
        max_iters=steps,
        warmup_iters=min(training.warmup_iters, steps // 10),
        eval_interval=max(1, min(training.eval_interval, steps // LEAST_EVALUATIONS)),
    )


def suited_parameters(text_bytes: int) -> int:
    """The number of parameters that suits a text of this size."""
    size = max(text_bytes / 1e6, 0.01)
    return round(
        SUITED_MILLIONS * 1e6 * size ** (SUITED_EXPONENT if size >= 1 else SUITED_EXPONENT_BELOW_1_MB)
    )


def expected_loss(text_bytes: int, device: str) -> tuple[float, float] | None:
    """Lowest and highest expected validation loss, interpolated over the logarithm of the text's size."""
    table = EXPECTED.get(device, ())
    size = text_bytes / 1e6
    if not table or not table[0][0] / BEYOND_TABLE <= size <= table[-1][0] * BEYOND_TABLE:
        return None
    inside = min(max(size, table[0][0]), table[-1][0])
    above = next(i for i, row in enumerate(table) if inside <= row[0])
    (s0, l0, e0), (s1, l1, e1) = table[max(0, above - 1)], table[above]
    share = math.log(inside / s0) / math.log(s1 / s0) if s1 > s0 else 0.0
    loss, spread = l0 + share * (l1 - l0), e0 + share * (e1 - e0)
    away = abs(math.log(size / inside)) if inside else 0.0
    spread *= 1 + away
    return loss - spread, loss + spread


def megabytes(size: int) -> str:
    """A text's size in words."""
    if size < 1e5:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 9.95e6 else f"{size / 1e6:,.0f} MB"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 9.95e6 else f"{count / 1e6:,.0f} M"
