"""Decoding on CUDA: reading a token and drawing the next one is one CUDA graph of a few kernels a layer.

One token gives the chip almost nothing to compute; what takes time is launching. `Reader` runs the kernels of
`core/ops/triton/decode_kernels.py`, recorded once and replayed. It computes what `GPT.features` and
`GPT.logits` do for T = 1 (tested).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor, nn

from core.generation.cuda.sampler import Drawer, Options, Plan
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
ATTEND_WARPS = 4


_shared: weakref.WeakKeyDictionary[GPT, dict[int, Reader | None]] = weakref.WeakKeyDictionary()


def shared_reader(model: GPT, eot: int) -> Reader | None:
    """The one reader of a model that all its texts take turns with; None if there can be none."""
    readers = _shared.setdefault(model, {})
    if eot not in readers:
        with torch.inference_mode(False):
            readers[eot] = Reader(model, eot) if readable(model) else None
    return readers[eot]


def readable(model: GPT) -> bool:
    """Whether the model is not too wide for `Reader`, and its parameters are float32."""
    widest = max(4, model.config.expand) * max(model.config.n_embd)
    return model.embedding.weight.dtype == torch.float32 and widest <= 1 << 14


class Reader:
    """`lanes` texts that are read one token at a time. It has a state of its own."""

    def __init__(self, model: GPT, eot: int, lanes: int = 1) -> None:
        """`eot` begins a document. The model's parameters are used where they lie, in float32."""
        self.model = model
        self.owner: object = None
        """Whose text this is; for the caller's use."""
        self._eot = eot
        self._lanes = lanes
        self._device = device = model.embedding.weight.device
        self._past = model.config.block_size - 1
        like = model.initial_state(lanes, device, torch.float32)
        # What is to be kept together lies together, each part aligned: so keeping it is one copy.
        sizes = [triton.cdiv(tensor.numel(), 64) * 64 for tensor in list(like.tensors().values())[1:]]
        self._memory = torch.zeros(sum(sizes), device=device)
        parts = iter(self._memory.split(sizes))
        self._counts = torch.zeros(4, lanes, dtype=torch.int64, device=device)
        position, self._tokens, self._steps, self._fresh = self._counts
        layers = tuple(
            type(layer)(*(next(parts)[: tensor.numel()].view_as(tensor) for tensor in layer))
            for layer in like.layers
        )
        self._state = ModelState(position, layers)
        self._rates, self._rates_at = _rotations(model)
        self._turns = torch.zeros(lanes, 2, len(self._rates), device=device)
        self.drawer = Drawer(model.vocab_size, lanes, device)
        self.logits = torch.zeros(lanes, model.vocab_size, device=device)
        """Of the token after the one read last, (lanes, V)."""
        self._graphs: dict[str | tuple[str, Plan], torch.cuda.CUDAGraph | None] = {}

    @torch.no_grad()
    def load(self, state: ModelState, logits: Tensor | None = None) -> None:
        """Go on from a state; `logits` (lanes, V), if something is to be drawn before the next token."""
        for name, tensor in self._state.tensors().items():
            tensor.copy_(state.tensors()[name])
        self._steps.zero_()
        if logits is not None:
            self.logits.copy_(logits)

    @torch.no_grad()
    def state(self) -> ModelState:
        """The state after all that was read, a copy."""
        turns = -int(self._steps[0]) % self._past if self._past else 0
        layers: list[AttentionState | MambaState] = []
        for layer in self._state.layers:
            if isinstance(layer, AttentionState):
                layers.append(AttentionState(*(tensor.roll(turns, 2) for tensor in layer)))
            else:
                layers.append(MambaState(*(tensor.clone() for tensor in layer)))
        return ModelState(self._state.position.clone(), tuple(layers))

    def give(self, tokens: Tensor) -> None:
        """The tokens (lanes,) int64 that are to be read next."""
        self._tokens.copy_(tokens)

    def next_token(self) -> Tensor:
        """The tokens (lanes,) int64 that are to be read next, a copy."""
        return self._tokens.clone()

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token a lane, (lanes,) int64. Returns `logits`, which the next call overwrites."""
        self.give(tokens)
        self._repeat("read", self._run, 1)
        return self.logits

    def read_and_draw(self, count: int) -> None:
        """`count` times read the token given or drawn before and draw the next, as `drawer` was prepared."""
        self._repeat(("read and draw", self.drawer.plan), self._run_and_draw, count)

    def write(self, count: int, *, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """Draw and read `count` tokens, each from the logits after the one before: (lanes, count).

        The same seed gives the same tokens. Temperature 0 takes the most probable one.
        """
        drawer = self.drawer
        drawer.prepare(Options(temperature=temperature), seed)
        if not 0 < count <= drawer.room:
            raise ValueError(f"count is {count}; accepted: 1 to {drawer.room}")
        self._repeat(("draw and read", drawer.plan), self._draw_and_run, count)
        records = drawer.records[:, : count * drawer.length].view(self._lanes, count, drawer.length)
        return records[:, :, 0].long()

    def kept(self) -> list[Tensor]:
        """All that reading and drawing go on from; copied elsewhere and back, they go on as if from there."""
        return [self._memory, self._counts, self.drawer.drawn]

    @torch.no_grad()
    def _repeat(self, name: str | tuple[str, Plan], function: Callable[[], object], count: int) -> None:
        if name not in self._graphs:
            self._graphs[name] = self._recorded(function)
        graph = self._graphs[name]
        for _ in range(count):
            if graph is None:
                function()
            else:
                graph.replay()

    def _recorded(self, function: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """A graph of what `function` does; nothing is changed by making it."""
        if not self._tokens.is_cuda:
            return None
        changing = [self._memory, self._counts, self.logits, *self.drawer.changing()]
        kept = [tensor.clone() for tensor in changing]
        function()  # compiles the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        for tensor, before in zip(changing, kept):
            tensor.copy_(before)
        return graph

    def _draw_and_run(self) -> None:
        self.drawer.launch(self.logits, self._tokens)
        self._run()

    def _run_and_draw(self) -> None:
        self._run()
        self.drawer.launch(self.logits, self._tokens)

    @torch.no_grad()
    def _run(self) -> None:
        """Read `_tokens`, layer by layer."""
        model, position = self.model, self._state.position
        places = model.position_embedding
        width = model.config.n_embd[0]
        x = torch.empty(self._lanes, width, device=self.logits.device)
        kernels.begin_kernel[(self._lanes,)](
            self._tokens, model.embedding.weight, None if places is None else places.weight, x, position,
            self._steps, self._fresh, self._rates, self._turns, self._eot, width, model.config.block_size,
            WIDTH=triton.next_power_of_2(width), RATES=len(self._rates), HAS_PLACES=places is not None,
        )  # fmt: skip
        for block, state in zip(model.blocks, self._state.layers):
            mixer: Any = block.mixer
            norm: Any = None
            if isinstance(state, AttentionState):
                mixed = self._attend(mixer, _project(x, mixer.qkv, norm=block.mixer_norm), state)
            elif isinstance(mixer, MambaBlock):
                mixed = self._scan(mixer, _project(x, mixer.in_proj, norm=block.mixer_norm), state)
            else:
                mixed = self._scan2(mixer, _project(x, mixer.in_proj, norm=block.mixer_norm), state)
                norm = mixer.norm
            x = _project(mixed, mixer.out, norm=norm, add=x)
            skip = x if isinstance(block.skip, nn.Identity) else _project(x, block.skip)
            mlp: Any = block.mlp
            raised = _project(x, mlp.up, norm=block.mlp_norm, squared_relu=True)
            x = _project(raised, mlp.down, add=skip)
        _project(x, model.head, norm=model.norm, out=self.logits)

    def _attend(self, mixer: MultiHeadAttention, qkv: Tensor, state: AttentionState) -> Tensor:
        out = torch.empty(self._lanes, qkv.shape[1] // 3, device=qkv.device)
        half = out.shape[1] // mixer.heads // 2
        kernels.attend_kernel[(mixer.heads, self._lanes)](
            qkv, state.keys, state.values, self._state.position, self._steps,
            self._turns[:, :, self._rates_at[half] :], out,
            self._past, mixer.heads, half, len(self._rates), math.log2(math.e) / math.sqrt(2 * half),
            SIZE=triton.next_power_of_2(2 * half), KEYS=128, ROPE=mixer.rope, num_warps=ATTEND_WARPS,
        )  # fmt: skip
        return out

    def _scan(self, mixer: MambaBlock, projected: Tensor, state: MambaState) -> Tensor:
        inner = mixer.conv_weight.shape[0]
        x = self._convolve(mixer, projected, state)
        out = torch.empty_like(x)
        rank, states, _ = mixer.split
        kernels.scan_kernel[(triton.cdiv(inner, 16), self._lanes)](
            x, _project(x, mixer.x_proj), projected[:, inner:], mixer.dt_norm.weight, mixer.B_norm.weight,
            mixer.C_norm.weight, mixer.dt_proj.weight, mixer.dt_bias, mixer.A_log, mixer.D, state.ssm_state,
            self._fresh, out, inner, rank, states, 2 * inner,
            CHANNELS=16, RANK=triton.next_power_of_2(rank), STATES=triton.next_power_of_2(states),
            num_warps=2,
        )  # fmt: skip
        return out

    def _scan2(self, mixer: Mamba2Block, projected: Tensor, state: MambaState) -> Tensor:
        x = self._convolve(mixer, projected[:, mixer.inner :], state)
        out = torch.empty(self._lanes, mixer.inner, device=projected.device)
        kernels.scan2_kernel[(triton.cdiv(mixer.inner, 16), self._lanes)](
            x, projected, mixer.dt_bias, mixer.A_log, mixer.D, state.ssm_state, self._fresh, out,
            mixer.inner, mixer.heads, mixer.states, x.shape[1], projected.shape[1],
            CHANNELS=16, STATES=triton.next_power_of_2(mixer.states), num_warps=2,
        )  # fmt: skip
        return out

    def _convolve(self, mixer: MambaBlock | Mamba2Block, inputs: Tensor, state: MambaState) -> Tensor:
        channels, taps = mixer.conv_weight.shape
        out = torch.empty(self._lanes, channels, device=inputs.device)
        kernels.convolve_kernel[(triton.cdiv(channels, 128), self._lanes)](
            inputs, mixer.conv_weight, mixer.conv_bias, state.conv_state, self._fresh, out, channels,
            inputs.stride(0), TAPS=taps, CHANNELS=128,
        )  # fmt: skip
        return out


def _rotations(model: GPT) -> tuple[Tensor, dict[int, int]]:
    """The rates at which queries and keys turn, float64, zeros behind; and where those for E / 2 begin."""
    rates: list[Tensor] = []
    begins: dict[int, int] = {}
    for block in model.blocks:
        mixer: Any = block.mixer
        if isinstance(mixer, MultiHeadAttention):
            half = mixer.out.in_features // mixer.heads // 2
            if half not in begins:
                begins[half] = sum(len(part) for part in rates)
                rates.append(ROPE_BASE ** -(torch.arange(half, dtype=torch.float64) / half))
    table = torch.cat([*rates, torch.zeros(1, dtype=torch.float64)])
    table = nn.functional.pad(table, (0, triton.next_power_of_2(len(table)) - len(table)))
    return table.to(model.embedding.weight.device), begins


def _project(
    x: Tensor,
    layer: Any,
    *,
    norm: Any = None,
    add: Tensor | None = None,
    squared_relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`layer` (linear, without bias) of x (lanes, inputs), normed first, `add` added; (lanes, outputs)."""
    lanes, inputs = x.shape
    if out is None:
        out = torch.empty(lanes, layer.weight.shape[0], device=x.device)
    outputs = out.shape[1]
    padded = triton.next_power_of_2(inputs)
    rows = max(1, min(16, TILE // padded))
    kernels.project_kernel[(triton.cdiv(outputs, rows), lanes)](
        x, layer.weight, None if norm is None else norm.weight, add, out, inputs, outputs, inputs, outputs,
        INPUTS=padded, ROWS=rows, HAS_NORM=norm is not None, HAS_ADD=add is not None,
        SQUARED_RELU=squared_relu,
    )  # fmt: skip
    return out
