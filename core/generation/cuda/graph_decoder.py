"""Decoding on CUDA: reading a token and sampling the next one is one CUDA graph of a few kernels per layer.

For one token the chip has almost nothing to compute; launching kernels takes the time. `GraphDecoder` runs
the kernels of `core/ops/triton/decode_kernels.py`, captured once and replayed. It computes what
`GPT.features` and `GPT.logits` do for T = 1 (tested).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn

from core.config.sampling import SamplingSettings
from core.generation.cuda.sampler import DeviceSampler, Filters
from core.model import (
    GPT,
    AttentionState,
    Mamba2Block,
    MambaBlock,
    MambaState,
    ModelState,
    MultiHeadAttention,
)
from core.ops.positions import ROPE_BASE
from core.ops.triton import decode_kernels as kernels

TILE = 4096
"""Elements of a matrix that a program multiplies at a time."""
MANY_ROWS = 16
"""From this many rows on, cuBLAS is faster: it reads a matrix once for all rows, the kernel once per row."""
ATTEND_WARPS = 4
WIDEST = 1 << 14


class Borrower(Protocol):
    """A sampler that continues a text on a graph decoder."""

    def release(self) -> None:
        """Take this text's state out of the graph decoder, because another text needs it."""


_shared: weakref.WeakKeyDictionary[GPT, dict[int, GraphDecoder | None]] = weakref.WeakKeyDictionary()


def shared_graph_decoder(model: GPT, eot: int) -> GraphDecoder | None:
    """The one graph decoder of a model, which all its texts use in turns; None if there can't be one."""
    decoders = _shared.setdefault(model, {})
    if eot not in decoders:
        with torch.inference_mode(False):
            decoders[eot] = GraphDecoder(model, eot) if can_decode(model) else None
    return decoders[eot]


def can_decode(model: GPT) -> bool:
    """Whether the model is narrow enough for `GraphDecoder`, and its parameters are float32."""
    widest = max(4, model.config.expand) * max(model.config.n_embd)
    return model.embedding.weight.dtype == torch.float32 and widest <= WIDEST


class GraphDecoder:
    """A batch of `rows` texts that are read one token at a time. It has its own state."""

    def __init__(self, model: GPT, eot: int, rows: int = 1) -> None:
        """`eot` starts a document. The model's parameters are used in place, in float32."""
        self._model = weakref.ref(model)  # the graph decoder is kept only as long as its model
        self._borrower: Borrower | None = None
        self._eot = eot
        self._rows = rows
        self._device = device = model.embedding.weight.device
        self._past = model.config.block_size - 1
        like = model.initial_state(rows, device, torch.float32)
        # Everything that is saved and restored is in one block of memory, each part aligned: saving is one
        # copy.
        sizes = [triton.cdiv(tensor.numel(), 64) * 64 for tensor in list(like.tensors().values())[1:]]
        self._memory = torch.zeros(sum(sizes), device=device)
        parts = iter(self._memory.split(sizes))
        self._counts = torch.zeros(4, rows, dtype=torch.int64, device=device)
        position, self._tokens, self._steps, self._doc_start = self._counts
        layers = tuple(
            type(layer)(*(next(parts)[: tensor.numel()].view_as(tensor) for tensor in layer))
            for layer in like.layers
        )
        self._state = ModelState(position, layers)
        self._inv_freq, self._inv_freq_at = _inverse_frequencies(model)
        self._rotations = torch.zeros(rows, 2, len(self._inv_freq), device=device)
        self.sampler = DeviceSampler(model.vocab_size, rows, device)
        self.logits = torch.zeros(rows, model.vocab_size, device=device)
        """The logits after the last token that was read, (rows, V)."""
        self._graphs: dict[str | tuple[str, Filters], torch.cuda.CUDAGraph | None] = {}

    def lend(self, borrower: Borrower) -> None:
        """Let `borrower` use the graph decoder; its current user takes its state out first."""
        if self._borrower is not None and self._borrower is not borrower:
            self._borrower.release()
        self._borrower = borrower

    def returned(self, borrower: Borrower) -> None:
        """`borrower` no longer needs it."""
        if self._borrower is borrower:
            self._borrower = None

    @torch.no_grad()
    def load(self, state: ModelState, logits: Tensor | None = None) -> None:
        """Continue from a state; `logits` (rows, V) if something is to be sampled before the next token."""
        for name, tensor in self._state.tensors().items():
            tensor.copy_(state.tensors()[name])
        self._steps.zero_()
        if logits is not None:
            self.logits.copy_(logits)

    @torch.no_grad()
    def state(self) -> ModelState:
        """A copy of the state after everything that was read."""
        shift = -int(self._steps[0]) % self._past if self._past else 0
        layers: list[AttentionState | MambaState] = []
        for layer in self._state.layers:
            if isinstance(layer, AttentionState):
                layers.append(AttentionState(*(tensor.roll(shift, 2) for tensor in layer)))
            else:
                layers.append(MambaState(*(tensor.clone() for tensor in layer)))
        return ModelState(self._state.position.clone(), tuple(layers))

    def set_next(self, tokens: Tensor) -> None:
        """The tokens (rows,) int64 to read next."""
        self._tokens.copy_(tokens)

    def next_tokens(self) -> Tensor:
        """A copy of the tokens (rows,) int64 to read next."""
        return self._tokens.clone()

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token per row, (rows,) int64. Returns `logits`, which the next call overwrites."""
        self.set_next(tokens)
        self._repeat("read", self._run, 1)
        return self.logits

    def launch(self, tokens: Tensor) -> Tensor:
        """As `read`, kernel by kernel: for a caller who captures them in a graph of its own."""
        self.set_next(tokens)
        self._run()
        return self.logits

    def read_and_sample(self, count: int) -> None:
        """`count` times, read the token that was set or sampled, and sample the next one."""
        self._repeat(("read and sample", self.sampler.filters), self._run_and_sample, count)

    def generate(self, count: int, *, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """Sample and read `count` tokens, each from the logits after the previous one: (rows, count).

        The same seed gives the same tokens. Temperature 0 takes the most probable one.
        """
        sampler = self.sampler
        sampler.prepare(SamplingSettings(temperature=temperature, seed=seed))
        if not 0 < count <= sampler.record_room:
            raise ValueError(f"count is {count}; accepted: 1 to {sampler.record_room}")
        self._repeat(("sample and read", sampler.filters), self._sample_and_run, count)
        records = sampler.records[:, : count * sampler.record_length].view(
            self._rows, count, sampler.record_length
        )
        return records[:, :, 0].long()

    def changing(self) -> list[Tensor]:
        """Everything that reading and sampling continue from; a copy can be restored later."""
        return [self._memory, self._counts, self.sampler.sampled]

    @torch.no_grad()
    def _repeat(self, name: str | tuple[str, Filters], function: Callable[[], object], count: int) -> None:
        if name not in self._graphs:
            self._graphs[name] = self._captured(function)
        graph = self._graphs[name]
        for _ in range(count):
            if graph is None:
                function()
            else:
                graph.replay()

    def _captured(self, function: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """Capture `function` in a graph, without changing any state."""
        if not self._tokens.is_cuda:
            return None
        changing = [self._memory, self._counts, self.logits, *self.sampler.changing()]
        kept = [tensor.clone() for tensor in changing]
        function()  # compiles the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        for tensor, before in zip(changing, kept):
            tensor.copy_(before)
        return graph

    def _sample_and_run(self) -> None:
        self.sampler.launch(self.logits, self._tokens)
        self._run()

    def _run_and_sample(self) -> None:
        self._run()
        self.sampler.launch(self.logits, self._tokens)

    @torch.no_grad()
    def _run(self) -> None:
        """Read `_tokens`, layer by layer."""
        model, position = self._model(), self._state.position
        assert model is not None, "the model of this graph decoder is gone"
        learned = model.position_embedding
        width = model.config.n_embd[0]
        x = torch.empty(self._rows, width, device=self.logits.device)
        kernels.embed_kernel[(self._rows,)](
            self._tokens, model.embedding.weight, None if learned is None else learned.weight, x, position,
            self._steps, self._doc_start, self._inv_freq, self._rotations, self._eot, width,
            model.config.block_size, WIDTH=triton.next_power_of_2(width), FREQUENCIES=len(self._inv_freq),
            LEARNED=learned is not None,
        )  # fmt: skip
        for block, state in zip(model.blocks, self._state.layers):
            mixer: Any = block.mixer
            norm: Any = None
            if isinstance(state, AttentionState):
                mixed = self._attend(mixer, _linear(x, mixer.qkv, norm=block.mixer_norm), state)
            elif isinstance(mixer, MambaBlock):
                mixed = self._selective_scan_step(
                    mixer, _linear(x, mixer.in_proj, norm=block.mixer_norm), state
                )
            else:
                mixed = self._ssd_step(mixer, _linear(x, mixer.in_proj, norm=block.mixer_norm), state)
                norm = mixer.norm
            x = _linear(mixed, mixer.out, norm=norm, add=x)
            skip = x if isinstance(block.skip, nn.Identity) else _linear(x, block.skip)
            mlp: Any = block.mlp
            hidden = _linear(x, mlp.up, norm=block.mlp_norm, squared_relu=True)
            x = _linear(hidden, mlp.down, add=skip)
        _linear(x, model.head, norm=model.norm, out=self.logits)

    def _attend(self, mixer: MultiHeadAttention, qkv: Tensor, state: AttentionState) -> Tensor:
        out = torch.empty(self._rows, qkv.shape[1] // 3, device=qkv.device)
        half = out.shape[1] // mixer.heads // 2
        kernels.attend_kernel[(mixer.heads, self._rows)](
            qkv, state.keys, state.values, self._state.position, self._steps,
            self._rotations[:, :, self._inv_freq_at[half] :], out,
            self._past, mixer.heads, half, len(self._inv_freq), math.log2(math.e) / math.sqrt(2 * half),
            SIZE=triton.next_power_of_2(2 * half), KEYS=128, ROPE=mixer.rope, num_warps=ATTEND_WARPS,
        )  # fmt: skip
        return out

    def _selective_scan_step(self, mixer: MambaBlock, projected: Tensor, state: MambaState) -> Tensor:
        inner = mixer.conv_weight.shape[0]
        x = self._conv_step(mixer, projected, state)
        out = torch.empty_like(x)
        rank, states, _ = mixer.split
        kernels.selective_scan_step_kernel[(triton.cdiv(inner, 16), self._rows)](
            x, _linear(x, mixer.x_proj), projected[:, inner:], mixer.dt_norm.weight, mixer.B_norm.weight,
            mixer.C_norm.weight, mixer.dt_proj.weight, mixer.dt_bias, mixer.A_log, mixer.D, state.ssm_state,
            self._doc_start, out, inner, rank, states, 2 * inner,
            CHANNELS=16, RANK=triton.next_power_of_2(rank), STATES=triton.next_power_of_2(states),
            num_warps=2,
        )  # fmt: skip
        return out

    def _ssd_step(self, mixer: Mamba2Block, projected: Tensor, state: MambaState) -> Tensor:
        x = self._conv_step(mixer, projected[:, mixer.inner :], state)
        out = torch.empty(self._rows, mixer.inner, device=projected.device)
        kernels.ssd_step_kernel[(triton.cdiv(mixer.inner, 16), self._rows)](
            x, projected, mixer.dt_bias, mixer.A_log, mixer.D, state.ssm_state, self._doc_start, out,
            mixer.inner, mixer.heads, mixer.states, x.shape[1], projected.shape[1],
            CHANNELS=16, STATES=triton.next_power_of_2(mixer.states), num_warps=2,
        )  # fmt: skip
        return out

    def _conv_step(self, mixer: MambaBlock | Mamba2Block, inputs: Tensor, state: MambaState) -> Tensor:
        channels, taps = mixer.conv_weight.shape
        out = torch.empty(self._rows, channels, device=inputs.device)
        kernels.conv_step_kernel[(triton.cdiv(channels, 128), self._rows)](
            inputs, mixer.conv_weight, mixer.conv_bias, state.conv_state, self._doc_start, out, channels,
            inputs.stride(0), TAPS=taps, CHANNELS=128,
        )  # fmt: skip
        return out


def _inverse_frequencies(model: GPT) -> tuple[Tensor, dict[int, int]]:
    """Inverse frequencies of rotary positions, float64, padded with zeros; and where those for each E / 2
    begin.
    """
    tables: list[Tensor] = []
    starts: dict[int, int] = {}
    for block in model.blocks:
        mixer: Any = block.mixer
        if isinstance(mixer, MultiHeadAttention):
            half = mixer.out.in_features // mixer.heads // 2
            if half not in starts:
                starts[half] = sum(len(part) for part in tables)
                tables.append(ROPE_BASE ** -(torch.arange(half, dtype=torch.float64) / half))
    table = torch.cat([*tables, torch.zeros(1, dtype=torch.float64)])
    table = nn.functional.pad(table, (0, triton.next_power_of_2(len(table)) - len(table)))
    return table.to(model.embedding.weight.device), starts


def _linear(
    x: Tensor,
    layer: Any,
    *,
    norm: Any = None,
    add: Tensor | None = None,
    squared_relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`layer` (linear, without bias) of x (rows, inputs), after a norm, plus `add`; (rows, outputs)."""
    rows, inputs = x.shape
    if out is None:
        out = torch.empty(rows, layer.weight.shape[0], device=x.device)
    outputs = out.shape[1]
    if rows >= MANY_ROWS:
        normed = x if norm is None else F.rms_norm(x, (inputs,), norm.weight, norm.eps)
        weight = layer.weight[:outputs].t()
        if add is None:
            torch.mm(normed, weight, out=out)
        else:
            torch.addmm(add, normed, weight, out=out)
        return out.relu_().square_() if squared_relu else out
    padded = triton.next_power_of_2(inputs)
    tile_rows = max(1, min(16, TILE // padded))
    kernels.linear_kernel[(triton.cdiv(outputs, tile_rows), rows)](
        x, layer.weight, None if norm is None else norm.weight, add, out, inputs, outputs, inputs, outputs,
        INPUTS=padded, ROWS=tile_rows, HAS_NORM=norm is not None, HAS_ADD=add is not None,
        SQUARED_RELU=squared_relu,
    )  # fmt: skip
    return out
