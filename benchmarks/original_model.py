"""The original project's model (domschl/mamba_autoencoder_transformer), rewritten from its description.

Only what determines its speed matters here: the scan is a Python loop that indexes (B, L, D, N) tensors, so
the backward of every step touches all of them; embedding and head are untied; the loss uses all logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loop_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Shapes as in core.ops.selective_scan; one time step after the other."""
    delta = F.softplus(dt)
    decay = torch.exp(delta.unsqueeze(3) * A)
    inputs = (delta * x).unsqueeze(3) * B.unsqueeze(2)
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + inputs[:, t]
        outputs.append((state @ C[:, t].unsqueeze(2)).squeeze(2))
    return torch.stack(outputs, 1) + x * D


class LoopMamba(nn.Module):
    def __init__(self, width: int, states: int = 16, taps: int = 4) -> None:
        super().__init__()
        self.inner, self.rank, self.states = 2 * width, -(-width // 16), states
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, taps, groups=self.inner, padding=taps - 1)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, 2)
        u = F.silu(self.conv(u.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2))
        dt, B, C = self.x_proj(u).split((self.rank, self.states, self.states), 2)
        y = loop_scan(u, self.dt_proj(dt), -torch.exp(self.A_log), B, C, self.D)
        return self.out_proj(y * F.silu(gate))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = self.dropout(scores.masked_fill(future, -torch.inf).softmax(3))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, following: int, heads: int, kind: str, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = LoopMamba(width) if kind == "mamba" else Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        self.resize = nn.Linear(width, following) if following != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.first(x))
        return self.resize(x + self.mlp(self.second(x)))


class Original(nn.Module):
    """(tokens (B, T), targets (B, T)) to the mean loss."""

    def __init__(
        self, widths: tuple[int, ...], heads: tuple[int, ...], kinds: tuple[str, ...],
        vocab_size: int, block_size: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, widths[0])
        self.position = nn.Embedding(block_size, widths[0])
        self.layers = nn.Sequential(
            *(
                Layer(width, following, heads[i], kinds[i], dropout)
                for i, (width, following) in enumerate(zip(widths, (*widths[1:], widths[-1])))
            )
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], vocab_size)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
        logits = self.head(self.norm(self.layers(x)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
