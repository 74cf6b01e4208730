"""Reads many texts in parallel, one token of each at a time, in plain torch: used by compression on CPU.

It computes what `GPT.features` and `GPT.logits` do for T = 1 (tested), with fewer calls and copies: states
are updated in place, and all rows are at the same position, so that nothing needs a mask. Every call has the
same shapes and the same order of arithmetic, so the same tokens give the same bits.

Shapes: S rows, C channels, H heads, E channels per head, W the window, D, N and K as in `core/model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.model import GPT, NORM_EPSILON, Mamba2Block, MambaBlock, MultiHeadAttention, decay_rates
from core.model_state import AttentionState, LayerState, MambaState, ModelState
from core.ops.positions import inverse_frequencies
from core.ops.rms_norm import rms_norm

LOG2_E = 1 / math.log(2)


class RowDecoder:
    """`rows` texts of equal length, in the middle of a document."""

    def __init__(self, model: GPT, rows: int) -> None:
        """Nothing is read yet. The model's weights are used in place."""
        self.model = model
        self.rows = rows
        self.can_be_captured = False  # the position is a number of Python's
        self.position = 0
        mixers: Iterable[Any] = (block.mixer for block in _blocks(model))
        kinds: dict[type, type[Any]] = {
            MultiHeadAttention: _Attention, MambaBlock: _Mamba, Mamba2Block: _Mamba2
        }  # fmt: skip
        self._mixers = [kinds[type(mixer)](mixer, rows) for mixer in mixers]

    def load(self, state: ModelState) -> None:
        """Let every row continue from the single row of `state`."""
        self.position = int(state.position[0])
        for mixer, layer in zip(self._mixers, state.layers):
            mixer.load(layer, self.position)

    def state(self) -> ModelState:
        """A copy of the state after everything that was read."""
        position = torch.full((self.rows,), self.position, device=self.model.embedding.weight.device)
        return ModelState(position, tuple(mixer.state(self.position) for mixer in self._mixers))

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Read one token per row, (S,) int64. Returns the logits of the next one, (S, V)."""
        model: Any = self.model
        x = F.embedding(tokens, model.embedding.weight)
        if model.position_embedding is not None:
            x = x + model.position_embedding.weight[self.position % model.config.block_size]
        for block, mixer in zip(_blocks(model), self._mixers):
            x = x + mixer.read(rms_norm(x, block.mixer_norm.weight, NORM_EPSILON), self.position)
            hidden = torch.mm(rms_norm(x, block.mlp_norm.weight, NORM_EPSILON), block.mlp.up.weight.t())
            hidden.relu_().square_()
            x = torch.addmm(block.skip(x), hidden, block.mlp.down.weight.t())
        self.position += 1
        return model.logits(rms_norm(x, model.norm.weight, NORM_EPSILON))


def _blocks(model: GPT) -> Iterable[Any]:
    return model.blocks


class _Attention:
    """The last W keys and values of every row, in a ring: token p is in slot p mod W."""

    def __init__(self, mixer: MultiHeadAttention, rows: int) -> None:
        self.mixer = mixer
        self.window = mixer.past + 1
        size = mixer.out.in_features // mixer.heads
        weight = mixer.out.weight
        self.keys = weight.new_zeros(rows, mixer.heads, self.window, size).detach()
        self.values = self.keys.clone()
        self.frequencies = inverse_frequencies(size // 2, weight.device)

    def _slots(self, position: int) -> Tensor:
        """The slots of the W - 1 tokens before `position`, oldest first, including unused slots."""
        slots = torch.arange(position - self.mixer.past, position, device=self.keys.device)
        return slots % self.window

    def load(self, layer: LayerState, position: int) -> None:
        assert isinstance(layer, AttentionState)
        slots = self._slots(position)
        for ring, given in zip((self.keys, self.values), layer):
            ring[:, :, slots] = given.to(ring.dtype).expand(len(ring), -1, -1, -1)

    def state(self, position: int) -> AttentionState:
        slots = self._slots(position)
        return AttentionState(self.keys[:, :, slots], self.values[:, :, slots])

    def _rotate(self, x: Tensor, position: int) -> Tensor:
        angles = position * self.frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def read(self, x: Tensor, position: int) -> Tensor:
        heads, slot = self.mixer.heads, position % self.window
        qkv = torch.mm(x, self.mixer.qkv.weight.t()).unflatten(1, (3 * heads, -1))
        qk, v = qkv.split((2 * heads, heads), 1)
        if self.mixer.rope:
            qk = self._rotate(qk, position)
        q, k = qk.chunk(2, 1)
        self.keys[:, :, slot], self.values[:, :, slot] = k, v
        seen = min(position + 1, self.window)
        keys, values = self.keys[:, :, :seen].flatten(0, 1), self.values[:, :, :seen].flatten(0, 1)
        scores = torch.bmm(q.flatten(0, 1).unsqueeze(1), keys.transpose(1, 2))  # (S H, 1, seen)
        weights = scores.mul_(q.shape[-1] ** -0.5).softmax(2)
        return torch.mm(torch.bmm(weights, values).view(len(x), -1), self.mixer.out.weight.t())


class _Convolution:
    """The last K inputs of every row, newest last."""

    def __init__(self, mixer: MambaBlock | Mamba2Block, rows: int) -> None:
        weight, bias = mixer.conv_weight.detach(), mixer.conv_bias.detach()
        self.taps = [tap.contiguous() for tap in weight.t().unbind()]
        self.bias = bias
        self.inputs = [weight.new_zeros(rows, len(weight)) for _ in self.taps[1:]]

    def load(self, conv_state: Tensor) -> None:
        self.inputs = [
            given.to(self.bias.dtype).expand(len(self.inputs[0]), -1) for given in conv_state.unbind(1)
        ]

    def state(self) -> Tensor:
        return torch.stack(self.inputs, 1)

    def read(self, x: Tensor) -> Tensor:
        out = torch.addcmul(self.bias, x, self.taps[-1])
        for seen, tap in zip(self.inputs, self.taps):
            out.addcmul_(seen, tap)
        self.inputs = [*self.inputs[1:], x]
        return F.silu(out)


class _Recurrent:
    """What both kinds of Mamba store for every row: the last inputs, and `hidden` of shape `memory`."""

    def __init__(self, mixer: MambaBlock | Mamba2Block, rows: int, memory: tuple[int, ...]) -> None:
        self.convolution = _Convolution(mixer, rows)
        self.rates = (decay_rates(mixer.A_log) * LOG2_E).detach()
        self.hidden = self.rates.new_zeros(rows, *memory)

    def load(self, layer: LayerState, position: int) -> None:
        assert isinstance(layer, MambaState)
        self.convolution.load(layer.conv_state)
        self.hidden.copy_(layer.ssm_state.expand_as(self.hidden))

    def state(self, position: int) -> MambaState:
        return MambaState(self.convolution.state(), self.hidden.clone())


class _Mamba(_Recurrent):
    """The state of every row, (S, D, N)."""

    def __init__(self, mixer: MambaBlock, rows: int) -> None:
        super().__init__(mixer, rows, tuple(mixer.A_log.shape))
        self.mixer = mixer

    def read(self, x: Tensor, position: int) -> Tensor:
        mixer = self.mixer
        inputs, gate = torch.mm(x, mixer.in_proj.weight.t()).chunk(2, 1)
        x = self.convolution.read(inputs)
        parts = torch.mm(x, mixer.x_proj.weight.t()).split(mixer.split, 1)
        norms = (mixer.dt_norm, mixer.B_norm, mixer.C_norm)
        dt, B, C = (rms_norm(part, norm.weight, NORM_EPSILON) for part, norm in zip(parts, norms))
        delta = F.softplus(torch.addmm(mixer.dt_bias, dt, mixer.dt_proj.weight.t()).to(self.hidden.dtype))
        step = x.to(self.hidden.dtype)
        decay = (delta.unsqueeze(2) * self.rates).exp2_()
        self.hidden.mul_(decay).addcmul_((delta * step).unsqueeze(2), B.to(step.dtype).unsqueeze(1))
        y = torch.bmm(self.hidden, C.to(step.dtype).unsqueeze(2)).squeeze(2)
        y = y.addcmul_(step, mixer.D) * F.silu(gate)
        return torch.mm(y.to(x.dtype), mixer.out.weight.t())


class _Mamba2(_Recurrent):
    """The state of every row, (S, H, P, N)."""

    def __init__(self, mixer: Mamba2Block, rows: int) -> None:
        super().__init__(mixer, rows, (mixer.heads, mixer.inner // mixer.heads, mixer.states))
        self.mixer = mixer

    def read(self, x: Tensor, position: int) -> Tensor:
        mixer, heads, states = self.mixer, self.mixer.heads, self.mixer.states
        sizes = (mixer.inner, mixer.inner + 2 * states, heads)
        gate, mixed, dt = torch.mm(x, mixer.in_proj.weight.t()).split(sizes, 1)
        inputs, B, C = self.convolution.read(mixed).split((mixer.inner, states, states), 1)
        delta = F.softplus((dt + mixer.dt_bias).to(self.hidden.dtype))  # (S, H)
        step = inputs.to(delta.dtype).unflatten(1, (heads, -1))  # (S, H, P)
        decay = (delta * self.rates).exp2_()[:, :, None, None]
        weighted = (step * delta.unsqueeze(2)).unsqueeze(3)
        self.hidden.mul_(decay).addcmul_(weighted, B.to(step.dtype)[:, None, None])
        y = torch.bmm(self.hidden.flatten(1, 2), C.to(step.dtype).unsqueeze(2)).view_as(step)
        y = torch.addcmul(y, step, mixer.D.unsqueeze(1)).flatten(1).to(x.dtype)
        y = rms_norm(y * F.silu(gate), mixer.norm.weight, NORM_EPSILON)
        return torch.mm(y, mixer.out.weight.t())
