"""The operations' part of `benchmarks.gpu`: scans, convolution, attention, output head."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_measure import (
    graph_ms,
    keep_going,
    peak_memory,
    ratio,
    report,
    reset_peak_memory,
    settings,
    synchronize,
)
from core.ops.causal_conv import causal_conv
from core.ops.linear_cross_entropy import linear_cross_entropy
from core.ops.positions import Positions
from core.ops.selective_scan import selective_scan
from core.ops.window_attention import window_attention

# (batch, channels, length, type, mamba_ssm's forward ms, forward and backward ms)
SCANS = [
    (64, 512, 128, torch.float32, 0.157, 0.728),
    (64, 512, 128, torch.bfloat16, 0.172, 0.832),
    (8, 2048, 2048, torch.bfloat16, 0.682, 3.389),
    (4, 2048, 8192, torch.bfloat16, 1.456, 6.899),
    (1, 4096, 65536, torch.bfloat16, 6.24, 29.5),
]
# (batch, heads, length, size of a head, window)
ATTENTIONS = [(64, 8, 128, 32, 128), (16, 12, 1024, 64, 1024)]
# (rows, width, vocabulary, torch.compile's ms)
HEADS = [(8192, 256, 4096, 0.56), (8192, 256, 50304, None), (16384, 768, 50304, 8.95)]


def normal(*shape: int, kind: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=settings.device).to(kind).requires_grad_()


def without_gradient(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def scans() -> None:
    report("\nselective scan, N 16, D and dt_bias: forward | forward and backward (mamba_ssm, ratio)")
    for batch, channels, length, kind, peer_forward, peer_both in SCANS:
        name = f"B{batch} D{channels} L{length} {str(kind)[6:]:9}"
        with keep_going(name):
            alone, both = scan_ms(*((2, 8, 16) if settings.quick else (batch, channels, length)), kind)
            report(
                f"  {name} {alone:7.3f} ({peer_forward}, {ratio(peer_forward, alone)})"
                f" | {both:7.3f} ms ({peer_both}, {ratio(peer_both, both)})"
            )
        reset_peak_memory()


def scan_ms(batch: int, channels: int, length: int, kind: torch.dtype) -> tuple[float, float]:
    x, dt = normal(batch, length, channels, kind=kind), normal(batch, length, channels, kind=kind)
    B, C = normal(batch, length, 16, kind=kind), normal(batch, length, 16, kind=kind)
    A = (-torch.rand(channels, 16, device=settings.device) - 0.1).requires_grad_()
    D, bias = (normal(channels, kind=torch.float32) for _ in range(2))
    grad = torch.randn(batch, length, channels, device=settings.device).to(kind)

    def forward() -> torch.Tensor:
        return selective_scan(x, dt, A, B, C, D, dt_bias=bias)[0]

    def both() -> object:
        return torch.autograd.grad(forward(), (x, dt, A, B, C, D, bias), grad)

    return graph_ms(without_gradient(forward)), graph_ms(both)


def operations() -> None:
    report("\noperations, bfloat16: forward | forward and backward")
    with keep_going("causal convolution"):
        convolution(*((2, 8, 16) if settings.quick else (64, 128, 512)))
    for batch, heads, length, size, window in ATTENTIONS:
        with keep_going(f"attention T{length}"):
            attention(*((2, 2, 8, 4, 8) if settings.quick else (batch, heads, length, size, window)))
    report("head and cross-entropy, forward and backward (torch.compile, ratio), memory")
    for rows, width, vocabulary, peer in HEADS:
        with keep_going(f"head {rows} x {width} x {vocabulary}"):
            head(*((8, 4, 64) if settings.quick else (rows, width, vocabulary)), peer)


def convolution(batch: int, length: int, channels: int) -> None:
    x = normal(batch, length, 2 * channels).detach()[..., :channels].requires_grad_()
    weight, bias = normal(channels, 4, kind=torch.float32), normal(channels, kind=torch.float32)
    grad = normal(batch, length, channels).detach()

    def forward() -> torch.Tensor:
        return causal_conv(x, weight, bias)[0]

    alone = graph_ms(without_gradient(forward))
    both = graph_ms(lambda: torch.autograd.grad(forward(), (x, weight, bias), grad))
    report(f"  causal convolution B{batch} L{length} D{channels}   {alone:.3f} | {both:.3f} ms")


def attention(batch: int, heads: int, length: int, size: int, window: int) -> None:
    q = normal(batch, heads, length, size)
    k, v = (normal(batch, heads, length + window - 1, size) for _ in range(2))
    before = torch.full((batch,), window, device=settings.device)
    tokens = torch.zeros(batch, length, dtype=torch.int64, device=settings.device)
    positions = Positions(tokens, before, None, window)

    def attend() -> torch.Tensor:
        return window_attention(q, k, v, positions, cache_learns=False)

    both = graph_ms(lambda: torch.autograd.grad(attend(), (q, k, v), torch.ones_like(q)))
    alone = graph_ms(without_gradient(attend))
    report(f"  attention B{batch} H{heads} T{length} W{window}   {alone:.3f} | {both:.3f} ms")


def head(rows: int, width: int, vocabulary: int, peer: float | None) -> None:
    x = normal(rows, width)
    weight = (torch.randn(vocabulary, width, device=settings.device) / 50).bfloat16().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), device=settings.device)

    def learn() -> object:
        return torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))

    learn()
    synchronize()
    base = reset_peak_memory()
    learn()
    memory = (peak_memory() - base) / 2**30
    milliseconds = graph_ms(learn)
    size = f"{rows} x {width} x {vocabulary}"
    report(f"  {size}   {milliseconds:.3f} ms ({peer}, {ratio(peer, milliseconds)}), {memory:.2f} GiB")
