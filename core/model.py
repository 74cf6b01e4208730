"""The model: an hourglass of layers that mix over time by attention, Mamba (S6) or Mamba-2 (SSD).

A model is a pure function of parameters, tokens and state to outputs and a new state, and cutting a text into
chunks never changes the result. Every document starts from an empty state, wherever it starts: the
convolution's taps, the recurrent state and attention all stop at `doc_start` (B, T).

The state, which is everything that a model remembers of a text, is in `core/model_state.py`. The operations
of the layers, and their kernels for each device, are in `core/ops`, one function per operation.

Shapes: B batch rows, T tokens, C channels of a layer, H heads, E channels per head, D inner channels of a
Mamba layer, N its states per channel, K its convolution's taps, W the window (`block_size`), V the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.config.schema import MAMBA, MAMBA2, STANDARD, ModelConfig
from core.model_state import AttentionState as AttentionState
from core.model_state import LayerState, begin_documents
from core.model_state import MambaState as MambaState
from core.model_state import ModelState as ModelState
from core.ops.attention_mixer import attention_mixer
from core.ops.dispatch import to_autocast_type
from core.ops.distillation_loss import Lesson, distillation_loss
from core.ops.feed_forward import feed_forward
from core.ops.linear_cross_entropy import linear_cross_entropy
from core.ops.mamba2_mixer import mamba2_mixer
from core.ops.mamba_mixer import mamba_mixer
from core.ops.positions import Positions
from core.ops.rms_norm import RMSNorm

VOCABULARY_MULTIPLE = 64
NORM_EPSILON = 1e-6
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class Output(NamedTuple):
    """Logits (B, T, V), or the mean loss if there are targets; and the state."""

    logits: Tensor | None
    loss: Tensor | None
    state: ModelState


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias that keeps the variance of its input."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def zero_init_linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection into the residual stream: zero at first, so that a new layer changes nothing."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def stratified(count: int) -> Tensor:
    """One random number from each of `count` equal parts of 0..1, (count,), shuffled: evenly spread even if
    few.
    """
    return (torch.randperm(count) + torch.rand(count)) / count


def initial_dt_bias(places: Tensor) -> Tensor:
    """The bias whose softplus is at `places` (channels,), 0 to 1, in the range of Mamba's step sizes."""
    low, high = math.log(DT_MIN), math.log(DT_MAX)
    dt = torch.exp(places * (high - low) + low).clamp(min=DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))


def decay_rates(A_log: Tensor) -> Tensor:
    """-exp(A_log), in float32 at least: the rates of a Mamba layer's decays."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))


class MultiHeadAttention(nn.Module):
    """Causal attention over the last W tokens of the document."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width = config.n_embd[layer]
        self.heads = config.n_head[layer]
        self.past = config.block_size - 1
        self.rope = config.position == "rope"
        self.qkv = linear(width, 3 * width)
        self.dropout = nn.Dropout(config.mixer_dropout)
        self.out = zero_init_linear(width, width)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        """An empty cache."""
        shape = (batch_size, self.heads, self.past, self.out.in_features // self.heads)
        empty = torch.zeros(shape, device=device, dtype=dtype)
        return AttentionState(empty, empty.clone())

    def forward(
        self, x: Tensor, state: AttentionState | None, positions: Positions
    ) -> tuple[Tensor, AttentionState]:
        """(B, T, C) to (B, T, C), and the new cache."""
        mixed, *cache = attention_mixer(self.qkv(x), state, positions, self.heads, rotary=self.rope)
        return self.out(self.dropout(mixed)), AttentionState(*cache)


class MambaBlock(nn.Module):
    """Mamba's mixer (arXiv 2312.00752) with norms on dt, B and C (Jamba, arXiv 2403.19887)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, states = config.n_embd[layer], config.d_state
        inner = config.expand * width
        rank = math.ceil(width / 16)
        self.split = (rank, states, states)
        self.in_proj = linear(width, 2 * inner)
        self.conv_weight = nn.Parameter(torch.empty(inner, config.d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        nn.init.uniform_(self.conv_weight, -(config.d_conv**-0.5), config.d_conv**-0.5)
        self.x_proj = linear(inner, sum(self.split))
        self.dt_norm, self.B_norm, self.C_norm = (RMSNorm(size, eps=NORM_EPSILON) for size in self.split)
        self.dt_proj = nn.Linear(rank, inner, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        self.dt_bias = nn.Parameter(initial_dt_bias(torch.rand(inner)))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.dropout = nn.Dropout(config.mixer_dropout)
        self.out = zero_init_linear(inner, width)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """No inputs yet, nothing remembered."""
        inner, taps = self.conv_weight.shape
        wide = torch.promote_types(dtype, torch.float32)
        return MambaState(
            torch.zeros(batch_size, taps - 1, inner, device=device, dtype=dtype),
            torch.zeros(batch_size, *self.A_log.shape, device=device, dtype=wide),
        )

    def forward(self, x: Tensor, state: MambaState | None, positions: Positions) -> tuple[Tensor, MambaState]:
        """(B, T, C) to (B, T, C), and the new state."""
        conv_state, ssm_state = (None, None) if state is None else state
        y, conv_state, ssm_state = mamba_mixer(
            self.in_proj(x),
            (self.conv_weight, self.conv_bias),
            self.x_proj.weight,
            (self.dt_norm.weight, self.B_norm.weight, self.C_norm.weight),
            self.dt_proj.weight,
            decay_rates(self.A_log),
            self.D,
            self.dt_bias,
            conv_state=conv_state,
            ssm_state=ssm_state,
            reset=positions.reset,
            eps=NORM_EPSILON,
        )
        return self.out(self.dropout(y)), MambaState(conv_state, ssm_state)


class Mamba2Block(nn.Module):
    """Mamba-2's mixer (arXiv 2405.21060): one decay per head, all projections at once, a norm at the end."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, self.states = config.n_embd[layer], config.d_state
        self.inner, self.heads = config.expand * width, config.n_head[layer]
        mixed = self.inner + 2 * self.states
        self.in_proj = linear(width, self.inner + mixed + self.heads)
        self.conv_weight = nn.Parameter(torch.empty(mixed, config.d_conv))
        self.conv_bias = nn.Parameter(torch.zeros(mixed))
        nn.init.uniform_(self.conv_weight, -(config.d_conv**-0.5), config.d_conv**-0.5)
        self.dt_bias = nn.Parameter(initial_dt_bias(stratified(self.heads)))
        self.A_log = nn.Parameter((1 + 15 * stratified(self.heads)).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = RMSNorm(self.inner, eps=NORM_EPSILON)
        self.dropout = config.mixer_dropout
        self.out = zero_init_linear(self.inner, width)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """No inputs yet, nothing remembered."""
        channels, taps = self.conv_weight.shape
        ssm_shape = (batch_size, self.heads, self.inner // self.heads, self.states)
        return MambaState(
            torch.zeros(batch_size, taps - 1, channels, device=device, dtype=dtype),
            torch.zeros(ssm_shape, device=device, dtype=torch.promote_types(dtype, torch.float32)),
        )

    def forward(self, x: Tensor, state: MambaState | None, positions: Positions) -> tuple[Tensor, MambaState]:
        """(B, T, C) to (B, T, C), and the new state."""
        conv_state, ssm_state = (None, None) if state is None else state
        y, conv_state, ssm_state = mamba2_mixer(
            x,
            self.in_proj.weight,
            (self.conv_weight, self.conv_bias),
            decay_rates(self.A_log),
            self.D,
            self.dt_bias,
            self.norm.weight,
            self.out.weight,
            conv_state=conv_state,
            ssm_state=ssm_state,
            reset=positions.reset,
            eps=NORM_EPSILON,
            dropout=self.dropout if self.training else 0.0,
        )
        return y, MambaState(conv_state, ssm_state)


class FeedForward(nn.Module):
    """Works on each token separately, and leads from a layer's width to the next one's."""

    def __init__(self, width: int, next_width: int) -> None:
        super().__init__()
        self.up = linear(width, 4 * width)
        self.down = zero_init_linear(4 * width, next_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, next C)."""
        return feed_forward(x, self.up.weight, self.down.weight)


# A new mixer is one class with these three methods, one line here and its name in core/config/schema.py.
MIXERS: dict[str, type[MultiHeadAttention] | type[MambaBlock] | type[Mamba2Block]] = {
    STANDARD: MultiHeadAttention,
    MAMBA: MambaBlock,
    MAMBA2: Mamba2Block,
}


class Block(nn.Module):
    """One layer: mix over time, then work on each token, both with a skip connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, next_width = config.widths[layer], config.widths[layer + 1]
        self.mixer_norm = RMSNorm(width, eps=NORM_EPSILON)
        self.mixer = MIXERS[config.attention_type[layer]](config, layer)
        self.mlp_norm = RMSNorm(width, eps=NORM_EPSILON)
        self.mlp = FeedForward(width, next_width)
        self.skip: nn.Module = nn.Identity()
        if width != next_width:
            self.skip = nn.Linear(width, next_width, bias=False)
            nn.init.orthogonal_(self.skip.weight)
        self.dropout = nn.Dropout(config.dropout)

    def mix(self, x: Tensor, state: LayerState | None, positions: Positions) -> tuple[Tensor, LayerState]:
        """The first half: (B, T, C) to (B, T, C), and the mixer's state."""
        mixed, state = self.mixer(self.mixer_norm(x), state, positions)
        return x + self.dropout(mixed), state

    def forward(self, x: Tensor, state: LayerState | None, positions: Positions) -> tuple[Tensor, LayerState]:
        """(B, T, C) to (B, T, next C), and the mixer's state."""
        x, state = self.mix(x, state, positions)
        return self.skip(x) + self.dropout(self.mlp(self.mlp_norm(x))), state


class GPT(nn.Module):
    """A language model over `vocab_size` tokens.

    The embedding's rows are padded to a multiple of 64, which makes products fast; padding is never
    predicted. `activation_checkpointing` saves memory in training at the expense of time.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.activation_checkpointing = False
        rows = math.ceil(vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        width = config.n_embd[0]
        self.embedding = nn.Embedding(rows, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.position_embedding: nn.Embedding | None = None
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, width)
            nn.init.normal_(self.position_embedding.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = RMSNorm(width, eps=NORM_EPSILON)
        self.head = nn.Linear(width, rows, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)
        self.head_working_weight: Tensor | None = None
        """The head's bf16 working weight, if training keeps one (`core/training/bf16_weights.py`)."""

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ModelState:
        """The state of `batch_size` batch rows before any text.

        By default it has the parameters' device and type.
        """
        like = self.embedding.weight
        device, dtype = torch.device(device or like.device), dtype or like.dtype
        layers = tuple(block.mixer.initial_state(batch_size, device, dtype) for block in self._layers())
        return ModelState(torch.zeros(batch_size, dtype=torch.int64, device=device), layers)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        doc_start: Tensor | None = None,
        targets: Tensor | None = None,
        lesson: Lesson | None = None,
    ) -> Output:
        """Read tokens (B, T), continuing from `state`; `doc_start` (B, T) bool marks where documents start.

        Without a state the text starts at its first token. With `targets` (B, T), -100 to ignore, the
        output has the mean loss in nats instead of logits; a teacher's `lesson` about them is part of it.
        """
        features, state = self.features(tokens, state, doc_start)
        if targets is None:
            return Output(self.logits(features), None, state)
        if lesson is not None:
            taught = distillation_loss(
                features.flatten(0, 1),
                self.head.weight,
                targets.flatten(),
                lesson,
                vocab_size=self.vocab_size,
                working_weight=self.head_working_weight,
            )
            return Output(None, taught, state)
        return Output(None, self.loss(features, targets), state)

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats of targets (B, T), -100 to ignore, from `features` (B, T, n_embd[0])."""
        return linear_cross_entropy(
            features.flatten(0, 1),
            self.head.weight,
            targets.flatten(),
            vocab_size=self.vocab_size,
            working_weight=self.head_working_weight,
        )

    def features(
        self, tokens: Tensor, state: ModelState | None = None, doc_start: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """The features that the head reads, (B, T, n_embd[0]), and the new state.

        Arguments as in `forward`.
        """
        x, state, positions = self._embed(tokens, state, doc_start)
        layers = []
        for i, block in enumerate(self._layers()):
            before = None if state is None else state.layers[i]
            if self.activation_checkpointing and torch.is_grad_enabled():
                x, after = checkpoint(
                    block,
                    x,
                    before,
                    positions,
                    use_reentrant=False,
                    preserve_rng_state=self.config.dropout > 0,
                )
            else:
                x, after = block(x, before, positions)
            layers.append(after)
        return self.norm(x), ModelState(positions.after, tuple(layers))

    def logits(self, features: Tensor) -> Tensor:
        """(B, T, n_embd[0]) to (B, T, V)."""
        return self.head(features)[..., : self.vocab_size]

    @property
    def waist(self) -> int:
        """The last of the narrowest layers."""
        narrowest = min(self.config.n_embd)
        return max(i for i, width in enumerate(self.config.n_embd) if width == narrowest)

    def encode(
        self, tokens: Tensor, state: ModelState | None = None, doc_start: Tensor | None = None
    ) -> Tensor:
        """The stream at the hourglass's waist, after the mixer of the last narrowest layer.

        (B, T, min(n_embd)); arguments as in `forward`.
        """
        return self.encode_layer(self.waist, tokens, state, doc_start)[0]

    def encode_layer(
        self,
        layer: int,
        tokens: Tensor,
        state: ModelState | None = None,
        doc_start: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """The stream after the mixer of a layer, (B, T, n_embd[layer]), and the state of the layers up to it.

        That state is enough to continue with the same layer; other arguments as in `forward`.
        """
        x, state, positions = self._embed(tokens, state, doc_start)
        layers: list[LayerState] = []
        for i, block in enumerate(self._layers()):
            before = None if state is None else state.layers[i]
            if i == layer:
                mixed, after = block.mix(x, before, positions)
                return mixed, ModelState(positions.after, (*layers, after))
            x, after = block(x, before, positions)
            layers.append(after)
        raise ValueError(f"layer is {layer}; accepted: 0 to {self.config.n_layer - 1}")

    def _layers(self) -> Iterable[Block]:
        return self.blocks  # type: ignore[return-value]

    def _embed(
        self, tokens: Tensor, state: ModelState | None, doc_start: Tensor | None
    ) -> tuple[Tensor, ModelState | None, Positions]:
        state, doc_start = begin_documents(state, doc_start)
        positions = Positions(
            tokens, None if state is None else state.position, doc_start, self.config.block_size
        )
        x = self.embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions.position % self.config.block_size)
        # In 16 bits under autocast: reading and writing the stream between layers takes most of a step's
        # time.
        return self.dropout(to_autocast_type(x)), state, positions
