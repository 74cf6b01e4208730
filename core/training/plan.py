"""How long to train on a text: where `max_iters` is 0, the steps that the text and the machine have use for.

More passes over a small text than this make a model that recites it. How many passes help depends on dropout
more than on anything else. A first rule through three points (docs/recipe.md): about 8 without, 25 with 0.3.
"""

from __future__ import annotations

from core.config.changes import replace
from core.config.schema import RunConfig
from core.data.corpus import TokenStream

PASSES_WITHOUT_DROPOUT = 8
PASSES_PER_DROPOUT = 57
LARGER_TEXT = -0.15
"""Exponent of the text's size in MB: of a larger text fewer passes are needed."""
CPU_TOKENS = 6_000_000
"""What a CPU reads in 25 minutes at 4,000 tokens a second."""
LEAST_EVALUATIONS = 8


def useful_passes(config: RunConfig, text_bytes: int) -> float:
    """Passes over a training text of so many bytes after which validation no longer improves, about."""
    dropout = min(config.model.mixer_dropout, 0.3)
    megabytes = max(text_bytes / 1e6, 0.1)
    return (PASSES_WITHOUT_DROPOUT + PASSES_PER_DROPOUT * dropout) * min(1.5, megabytes**LARGER_TEXT)


def with_steps(config: RunConfig, text: TokenStream, *, cpu: bool) -> RunConfig:
    """The configuration with `max_iters`, and evaluations often enough, where it leaves them to the text."""
    training = config.training
    if training.max_iters:
        return config
    per_step = training.batch_size * config.model.block_size * training.gradient_accumulation_steps
    tokens = useful_passes(config, text.text_bytes) * len(text)
    if cpu:
        tokens = min(tokens, CPU_TOKENS)
    steps = max(LEAST_EVALUATIONS, round(tokens / per_step))
    return replace(
        config,
        max_iters=steps,
        warmup_iters=min(training.warmup_iters, steps // 10),
        eval_interval=min(training.eval_interval, steps // LEAST_EVALUATIONS),
    )
