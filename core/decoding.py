"""Decoding on CUDA: reading a token is one CUDA graph of a few kernels a layer, and so is drawing the next.

One token gives the chip almost nothing to compute; what takes time is launching. `Reader` runs the kernels of
`core/ops/decode_triton.py`, recorded once and replayed. It computes what `GPT.features` and `GPT.logits` do
for T = 1 (tested), for models of attention and Mamba (S6) layers.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
import triton
from torch import Tensor, nn

from core.model import GPT, AttentionState, MambaBlock, MambaState, ModelState, MultiHeadAttention
from core.ops import decode_triton as kernels
from core.ops.window_attention import ROPE_BASE

ROOM = 1 << 14
"""Drawn tokens held on the device."""
DRAW_PIECE = 2048
TILE = 4096
"""Elements of a matrix that a program multiplies at a time."""


_shared: weakref.WeakKeyDictionary[GPT, dict[int, Reader | None]] = weakref.WeakKeyDictionary()


def shared_reader(model: GPT, eot: int) -> Reader | None:
    """The one reader of a model that all its texts take turns with; None if there can be none."""
    readers = _shared.setdefault(model, {})
    if eot not in readers:
        with torch.inference_mode(False):
            readers[eot] = Reader(model, eot) if readable(model) else None
    return readers[eot]


def readable(model: GPT) -> bool:
    """Whether `Reader` knows all of the model's layers, and its parameters are float32."""
    if model.embedding.weight.dtype != torch.float32:
        return False
    kinds = (MultiHeadAttention, MambaBlock)
    widest = max(4 * max(model.config.n_embd), model.config.expand * max(model.config.n_embd))
    return all(isinstance(block.mixer, kinds) for block in model.blocks) and widest <= 1 << 14


class Reader:
    """`lanes` texts that are read one token at a time. It has a state of its own."""

    def __init__(self, model: GPT, eot: int, lanes: int = 1) -> None:
        """`eot` begins a document. The model's parameters are used where they lie, in float32."""
        self.model = model
        self.owner: object = None
        """Whose text this is; for the caller's use."""
        self._eot = eot
        self._lanes = lanes
        device = model.embedding.weight.device
        self._past = model.config.block_size - 1
        self._tokens = torch.zeros(lanes, dtype=torch.int64, device=device)
        self._steps, self._fresh, self._drawn = (torch.zeros_like(self._tokens) for _ in range(3))
        self._seeds = torch.zeros_like(self._tokens)
        self._options = torch.ones(2, device=device)
        self._written = torch.zeros(lanes, ROOM, dtype=torch.int64, device=device)
        self._state = model.initial_state(lanes, device, torch.float32)
        self.logits = torch.zeros(lanes, model.vocab_size, device=device)
        """Of the token after the one read last, (lanes, V)."""
        self._read_graph: torch.cuda.CUDAGraph | None = None
        self._write_graph: torch.cuda.CUDAGraph | None = None

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

    def read(self, tokens: Tensor) -> Tensor:
        """Read one token a lane, (lanes,) int64. Returns `logits`, which the next call overwrites."""
        self._tokens.copy_(tokens)
        if self._read_graph is None:
            self._read_graph = self._recorded(self._run)
        if self._read_graph is None:
            self._run()
        else:
            self._read_graph.replay()
        return self.logits

    def write(self, count: int, *, temperature: float = 0.8, seed: int = 0) -> Tensor:
        """Draw and read `count` tokens, each from the logits after the one before: (lanes, count).

        The same seed gives the same tokens. Temperature 0 takes the most probable one.
        """
        if not 0 < count <= ROOM:
            raise ValueError(f"count is {count}; accepted: 1 to {ROOM}")
        options = (1.0, 0.0) if temperature == 0 else (1 / temperature, 1.0)
        self._options.copy_(torch.tensor(options))
        self._seeds.copy_(torch.arange(self._lanes) + (seed % (1 << 31)) * 1009)
        self._drawn.zero_()
        if self._write_graph is None:
            self._write_graph = self._recorded(self._draw_and_run)
        for _ in range(count):
            if self._write_graph is None:
                self._draw_and_run()
            else:
                self._write_graph.replay()
        return self._written[:, :count].clone()

    def _recorded(self, function: Any) -> torch.cuda.CUDAGraph | None:
        """A graph of what `function` does; nothing is changed by making it."""
        if not self._tokens.is_cuda:
            return None
        kept = [tensor.clone() for tensor in self._changing()]
        function()  # compiles the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        for tensor, before in zip(self._changing(), kept):
            tensor.copy_(before)
        return graph

    def _changing(self) -> list[Tensor]:
        fixed = [self._tokens, self._steps, self._fresh, self._drawn, self._written, self.logits]
        return [*fixed, *self._state.tensors().values()]

    def _draw_and_run(self) -> None:
        pieces = triton.cdiv(self.model.vocab_size, DRAW_PIECE)
        best = torch.empty(self._lanes, pieces, device=self.logits.device)
        where = torch.empty(self._lanes, pieces, dtype=torch.int32, device=self.logits.device)
        kernels.draw_kernel[(pieces, self._lanes)](
            self.logits, self._options, self._seeds, self._drawn, best, where, self.model.vocab_size, pieces,
            PIECE=DRAW_PIECE,
        )  # fmt: skip
        kernels.choose_kernel[(self._lanes,)](
            best, where, self._tokens, self._written, self._drawn, pieces, ROOM,
            PIECES=triton.next_power_of_2(pieces),
        )  # fmt: skip
        self._run()

    @torch.no_grad()
    def _run(self) -> None:
        """Read `_tokens`, layer by layer."""
        model, position = self.model, self._state.position
        places = model.position_embedding
        width = model.config.n_embd[0]
        x = torch.empty(self._lanes, width, device=self.logits.device)
        kernels.begin_kernel[(self._lanes,)](
            self._tokens, model.embedding.weight, None if places is None else places.weight, x, position,
            self._steps, self._fresh, self._eot, width, model.config.block_size,
            WIDTH=triton.next_power_of_2(width), HAS_PLACES=places is not None,
        )  # fmt: skip
        for block, state in zip(model.blocks, self._state.layers):
            mixer: Any = block.mixer
            if isinstance(state, AttentionState):
                mixed = self._attend(mixer, _project(x, mixer.qkv, norm=block.mixer_norm), state)
            else:
                mixed = self._scan(mixer, _project(x, mixer.in_proj, norm=block.mixer_norm), state)
            x = _project(mixed, mixer.out, add=x)
            skip = x if isinstance(block.skip, nn.Identity) else _project(x, block.skip)
            feed: Any = block.feed
            raised = _project(x, feed.up, norm=block.feed_norm, squared_relu=True)
            x = _project(raised, feed.down, add=skip)
        _project(x, model.head, norm=model.norm, out=self.logits)

    def _attend(self, mixer: MultiHeadAttention, qkv: Tensor, state: AttentionState) -> Tensor:
        out = torch.empty(self._lanes, qkv.shape[1] // 3, device=qkv.device)
        half = out.shape[1] // mixer.heads // 2
        kernels.attend_kernel[(mixer.heads, self._lanes)](
            qkv, state.keys, state.values, self._state.position, self._steps, out,
            self._past, mixer.heads, half, ROPE_BASE, math.log2(math.e) / math.sqrt(2 * half),
            HALF=triton.next_power_of_2(half), KEYS=128, ROPE=mixer.rope,
        )  # fmt: skip
        return out

    def _scan(self, mixer: MambaBlock, projected: Tensor, state: MambaState) -> Tensor:
        inner, taps = mixer.conv_weight.shape
        x = torch.empty(self._lanes, inner, device=projected.device)
        out = torch.empty_like(x)
        kernels.convolve_kernel[(triton.cdiv(inner, 128), self._lanes)](
            projected, mixer.conv_weight, mixer.conv_bias, state.tail, self._fresh, x, inner, 2 * inner,
            TAPS=taps, CHANNELS=128,
        )  # fmt: skip
        rank, states, _ = mixer.split
        kernels.scan_kernel[(triton.cdiv(inner, 16), self._lanes)](
            x, _project(x, mixer.x_proj), projected[:, inner:], mixer.dt_norm.weight, mixer.B_norm.weight,
            mixer.C_norm.weight, mixer.dt_proj.weight, mixer.dt_bias, mixer.A_log, mixer.D, state.hidden,
            self._fresh, out, inner, rank, states, 2 * inner,
            CHANNELS=16, RANK=triton.next_power_of_2(rank), STATES=triton.next_power_of_2(states),
            num_warps=2,
        )  # fmt: skip
        return out


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
