"""The cost of a configuration: parameters, floating-point operations and memory, by arithmetic alone.

Numbers of parameters are exact (a test compares them with the built model). Operations count a multiply-add
as two, and include only matrix products, attention scores and the scan; training costs three times the
forward. Memory is an estimate of the peak during training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.config.changes import replace
from core.config.schema import MAMBA, STANDARD, ModelConfig, RunConfig
from core.system.hardware import cuda_devices

SSD_CHUNK = 64
VOCABULARY_MULTIPLE = 64
ADAMW_BYTES = 4 + 4 + 8  # a weight, its gradient, and AdamW's two averages, all float32
LOSS_CHUNK_TOKENS = 2048
SHARD_FROM = 1 << 28
"""From this many parameters on, AdamW's averages are divided among ranks. With fewer, that would save little
memory, and exchanging weights would take longer than updating all of them."""


@dataclass(frozen=True)
class LayerBudget:
    """One layer's costs. `flops` are the forward's, per token; `activations` are numbers stored per token."""

    parameters: int
    flops: float
    activations: float


def padded_vocabulary(vocab_size: int) -> int:
    """Rows of the embedding: the vocabulary rounded up to a size that matrix units are fast with."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def dt_rank(width: int) -> int:
    """Rank of a Mamba layer's step-size projection (Gu & Dao 2023, section 3.6)."""
    return math.ceil(width / 16)


def layers(model: ModelConfig, vocab_size: int) -> list[LayerBudget]:
    """The cost of every layer, without the embedding and the head."""
    return [_layer(model, index) for index in range(model.n_layer)]


def _layer(model: ModelConfig, index: int) -> LayerBudget:
    width, out = model.widths[index], model.widths[index + 1]
    kind = model.attention_type[index]
    if kind == STANDARD:
        mixer = _attention(model, width)
    elif kind == MAMBA:
        mixer = _mamba(model, width)
    else:
        mixer = _mamba2(model, width, model.n_head[index])
    feed_forward = 4 * width * width + 4 * width * out
    skip = width * out if width != out else 0
    return LayerBudget(
        parameters=mixer.parameters + 2 * width + feed_forward + skip,
        flops=mixer.flops + 2 * (feed_forward + skip),
        activations=mixer.activations + 4 * width + 8 * width + out,
    )


def _attention(model: ModelConfig, width: int) -> LayerBudget:
    weights = 4 * width * width
    scores = 4 * width * model.block_size
    return LayerBudget(weights, 2 * weights + scores, 7 * width)


def _mamba(model: ModelConfig, width: int) -> LayerBudget:
    inner, rank, states = model.expand * width, dt_rank(width), model.d_state
    matrices = width * 2 * inner + inner * (rank + 2 * states) + rank * inner + inner * width
    # convolution and its bias, dt bias, A_log, D, and the norms on dt, B and C
    small = inner * (model.d_conv + 1) + inner + inner * states + inner + rank + 2 * states
    scan = inner * (7 * states + 2 * model.d_conv)
    kept = 8 * inner + inner * states / 16 + 2 * (rank + 2 * states)
    return LayerBudget(matrices + small, 2 * matrices + scan, kept)


def _mamba2(model: ModelConfig, width: int, heads: int) -> LayerBudget:
    inner, states = model.expand * width, model.d_state
    matrices = width * (2 * inner + 2 * states + heads) + inner * width
    small = (inner + 2 * states) * (model.d_conv + 1) + 3 * heads + inner
    scan = 2 * SSD_CHUNK * (states + inner) + 4 * inner * states
    return LayerBudget(matrices + small, 2 * matrices + scan, 8 * inner + 6 * states)


def parameters(model: ModelConfig, vocab_size: int) -> int:
    """The exact number of parameters of the whole model."""
    table = padded_vocabulary(vocab_size) * model.n_embd[0]
    positions = model.block_size * model.n_embd[0] if model.position == "learned" else 0
    head = 0 if model.tie_embeddings else table
    return (
        table
        + head
        + positions
        + model.n_embd[0]
        + sum(layer.parameters for layer in layers(model, vocab_size))
    )


def flops_per_token(model: ModelConfig, vocab_size: int) -> float:
    """Floating-point operations of one training step, per token: forward and backward."""
    head = 2 * padded_vocabulary(vocab_size) * model.n_embd[0]
    return 3.0 * (head + sum(layer.flops for layer in layers(model, vocab_size)))


def training_memory(config: RunConfig, vocab_size: int, *, cuda: bool = False) -> int:
    """Estimated peak bytes during training, without the framework itself."""
    model, training = config.model, config.training
    half = config.hardware.dtype == "bfloat16" or (config.hardware.dtype == "auto" and cuda)
    element = 2 if half else 4
    ranks = rank_count(config)
    tokens = training.batch_size // ranks * model.block_size
    per_layer = [layer.activations for layer in layers(model, vocab_size)]
    if config.hardware.activation_checkpointing:
        kept = sum(model.n_embd) + max(per_layer)
    else:
        kept = sum(per_layer)
    logits = min(tokens, LOSS_CHUNK_TOKENS) * padded_vocabulary(vocab_size) * (element + 4)
    return int(
        parameters(model, vocab_size) * ADAMW_BYTES
        + _of_ranks(parameters(model, vocab_size), ranks)
        + tokens * kept * element
        + logits
        + (parameters(model, vocab_size) * 2 if half else 0)
    )


def rank_count(config: RunConfig) -> int:
    """How many ranks share a batch; for `all`, one for every GPU of this machine."""
    return config.hardware.ranks or max(1, len(cuda_devices()))


def _of_ranks(count: int, ranks: int) -> int:
    """How a rank's memory differs from that of a single process: sums of gradients, fewer averages."""
    if ranks == 1:
        return 0
    averages = 8 * count * (ranks - 1) // ranks if count >= SHARD_FROM else 0
    return 4 * count - averages


def lower_memory_advice(config: RunConfig, vocab_size: int, available: int, *, cuda: bool = False) -> str:
    """Which setting to lower to what, so that training fits into `available` bytes, as one sentence.

    Proposes a smaller batch with more accumulation steps, which computes the same gradient.
    """
    batch, steps = config.training.batch_size, config.training.gradient_accumulation_steps
    smaller = batch
    while smaller > 1:
        smaller //= 2
        lowered = replace(config, batch_size=smaller)
        if training_memory(lowered, vocab_size, cuda=cuda) <= available:
            return (
                f"lower batch_size from {batch} to {smaller} and raise gradient_accumulation_steps "
                f"from {steps} to {steps * -(-batch // smaller)}, which learns the same"
            )
    weights = parameters(config.model, vocab_size) * ADAMW_BYTES
    if weights > available:
        return f"lower n_embd or n_layer: the weights alone take {weights / 2**30:.1f} GiB during training"
    if not config.hardware.activation_checkpointing:
        return "set activation_checkpointing to true, or lower block_size or n_embd"
    block = config.model.block_size
    return f"lower block_size from {block} to {max(block // 2, 1)}, or n_embd"
