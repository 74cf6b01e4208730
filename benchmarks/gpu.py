"""Speed on one CUDA GPU: operations, training steps and decoding, beside the peers' figures.

    python -m benchmarks.gpu [scan] [operations] [training] [decoding] [--no-compile]

Each part runs in this process and prints a table; without names all run. Peers that cannot be installed
beside it are quoted from shared/ANCHORS.md (same kind of GPU, another day). Operations are timed as replays
of a CUDA graph, the median of 20.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable

import torch

from core.bench import RandomStream
from core.captured import CapturedStep
from core.config import build
from core.loader import SequentialLoader
from core.model import GPT
from core.optim import make_optimizer

SEED = {
    "n_embd": [256, 256, 192, 128, 128, 192, 256, 256],
    "n_head": 8,
    "attention_type": ["mamba", "standard", "standard", "mamba", *["standard"] * 4],
    "block_size": 128,
    "batch_size": 64,
}
LARGE = {
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "attention_type": ["mamba", "standard"] * 6,
    "block_size": 1024,
    "batch_size": 16,
}
# (batch, channels, length, type, mamba_ssm's forward ms, forward and backward ms)
SCANS = [
    (64, 512, 128, torch.float32, 0.157, 0.728),
    (64, 512, 128, torch.bfloat16, 0.172, 0.832),
    (8, 2048, 2048, torch.bfloat16, 0.682, 3.389),
    (4, 2048, 8192, torch.bfloat16, 1.456, 6.899),
    (1, 4096, 65536, torch.bfloat16, 6.24, 29.5),
]
# (rows, width, vocabulary, torch.compile's ms)
HEADS = [(8192, 256, 4096, 0.56), (8192, 256, 50304, None), (16384, 768, 50304, 8.95)]
# (name, shape, vocabulary, dropout, best peer's tokens/s)
TRAININGS = [
    ("seed preset", SEED, 50257, 0.1, 588e3),
    ("seed widths, 4,096 tokens", SEED, 4096, 0.0, None),
    ("12 x 768, every second Mamba", LARGE, 50257, 0.0, 449e3),
]
DECODE_TOKENS = 4000


def graph_ms(work: Callable[[], object], repeats: int = 20) -> float:
    """Milliseconds of one replay of what `work` launches, the median."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def without_gradient(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def ratio(peer: float | None, own: float) -> str:
    return "" if peer is None else f"{peer / own:.2f} x"


def scans() -> None:
    print("\nselective scan, N 16, D and dt_bias: forward | forward and backward (mamba_ssm, ratio)")
    for batch, channels, length, kind, peer_forward, peer_both in SCANS:
        alone, both = scan_ms(batch, channels, length, kind)
        torch.cuda.empty_cache()
        print(
            f"  B{batch} D{channels} L{length} {str(kind)[6:]:9}"
            f" {alone:7.3f} ({peer_forward}, {ratio(peer_forward, alone)})"
            f" | {both:7.3f} ms ({peer_both}, {ratio(peer_both, both)})"
        )


def scan_ms(batch: int, channels: int, length: int, kind: torch.dtype) -> tuple[float, float]:
    from core.ops.selective_scan import selective_scan

    def normal(*shape: int, kind: torch.dtype = kind) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(kind).requires_grad_()

    x, dt = normal(batch, length, channels), normal(batch, length, channels)
    B, C = normal(batch, length, 16), normal(batch, length, 16)
    A = (-torch.rand(channels, 16, device="cuda") - 0.1).requires_grad_()
    D, bias = (normal(channels, kind=torch.float32) for _ in range(2))
    grad = torch.randn(batch, length, channels, device="cuda").to(kind)

    def forward() -> torch.Tensor:
        return selective_scan(x, dt, A, B, C, D, dt_bias=bias)[0]

    def both() -> object:
        return torch.autograd.grad(forward(), (x, dt, A, B, C, D, bias), grad)

    return graph_ms(without_gradient(forward)), graph_ms(both)


def operations() -> None:
    from core.ops.causal_conv import causal_conv
    from core.ops.linear_cross_entropy import linear_cross_entropy
    from core.ops.window_attention import Places, window_attention

    print("\noperations, bfloat16: forward | forward and backward")
    x = torch.randn(64, 128, 1024, device="cuda", dtype=torch.bfloat16)[..., :512].requires_grad_()
    weight, bias = (torch.randn(*size, device="cuda", requires_grad=True) for size in ((512, 4), (512,)))
    grad = torch.randn(64, 128, 512, device="cuda", dtype=torch.bfloat16)

    def convolve() -> torch.Tensor:
        return causal_conv(x, weight, bias)[0]

    both = graph_ms(lambda: torch.autograd.grad(convolve(), (x, weight, bias), grad))
    print(f"  causal convolution B64 L128 D512   {graph_ms(without_gradient(convolve)):.3f} | {both:.3f} ms")
    for batch, heads, length, size, window in ((64, 8, 128, 32, 128), (16, 12, 1024, 64, 1024)):
        q = torch.randn(batch, heads, length, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        k, v = (
            torch.randn(batch, heads, length + window - 1, size, device="cuda", dtype=torch.bfloat16)
            for _ in range(2)
        )
        k.requires_grad_()
        v.requires_grad_()
        before = torch.full((batch,), window, device="cuda")
        tokens = torch.zeros(batch, length, dtype=torch.int64, device="cuda")
        places = Places(tokens, before, None, window)

        def attend() -> torch.Tensor:
            return window_attention(q, k, v, places, cache_learns=False)  # noqa: B023

        both = graph_ms(lambda: torch.autograd.grad(attend(), (q, k, v), torch.ones_like(q)))  # noqa: B023
        alone = graph_ms(without_gradient(attend))
        print(f"  attention B{batch} H{heads} T{length} W{window}   {alone:.3f} | {both:.3f} ms")
    print("head and cross-entropy, forward and backward (torch.compile, ratio), memory")
    for rows, width, vocabulary, peer in HEADS:
        x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = (torch.randn(vocabulary, width, device="cuda") / 50).bfloat16().requires_grad_()
        targets = torch.randint(0, vocabulary, (rows,), device="cuda")

        def learn() -> object:
            return torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))  # noqa: B023

        learn()
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        learn()
        memory = (torch.cuda.max_memory_allocated() - base) / 2**30
        found = graph_ms(learn)
        size = f"{rows} x {width} x {vocabulary}"
        print(f"  {size}   {found:.3f} ms ({peer}, {ratio(peer, found)}), {memory:.2f} GiB")


def trainings(compiled: bool) -> None:
    print(f"\ntraining, captured{', compiled' if compiled else ''}, bfloat16 (best peer, ratio)")
    torch.set_float32_matmul_precision("high")
    for name, shape, vocabulary, dropout, peer in TRAININGS:
        config = build(shape | {"dropout": dropout, "max_iters": 1000})
        training, block = config.training, config.model.block_size
        torch.manual_seed(0)
        model = GPT(config.model, vocabulary).cuda().train()
        forward = torch.compile(model) if compiled else model
        stream = RandomStream(2_000_000, vocabulary)
        loader = SequentialLoader(stream, vocabulary - 1, training.batch_size, block, 8, seed=1)
        optimizer = make_optimizer(model, training)
        step = CapturedStep(model, forward, optimizer, loader, config, torch.device("cuda"))
        began = time.perf_counter()
        step.run(1)
        step.read(wait=True)
        first = time.perf_counter() - began
        for number in range(2, 8):
            step.run(number)
        torch.cuda.synchronize()
        step.read(wait=True)
        began, count = time.perf_counter(), 50
        for number in range(8, 8 + count):
            step.run(number)
        torch.cuda.synchronize()
        each = (time.perf_counter() - began) / count
        metrics = step.read(wait=True)
        rate = training.batch_size * block / each
        waited = statistics.median(item.waited for item in metrics) / each
        memory = torch.cuda.max_memory_allocated() / 2**30
        beside = "" if peer is None else f" ({peer:,.0f}, {rate / peer:.2f} x)"
        print(
            f"  {name:30} {each * 1e3:7.3f} ms, {rate:11,.0f} tok/s{beside}, fed in {waited:.2%} of it,"
            f" first step {first:.1f} s, {memory:.2f} GiB {step.notices or ''}"
        )
        del model, forward, optimizer, step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def decoding() -> None:
    from core.decoding import Reader

    print("\ndecoding, seed preset, float32 (mamba_ssm with a CUDA graph 2,182, nanoGPT 26 tok/s at batch 1)")
    torch.manual_seed(0)
    model = GPT(build(SEED).model, 50257).cuda().eval()
    for lanes in (1, 8):
        reader = Reader(model, -1, lanes)
        reader.write(10)
        torch.cuda.synchronize()
        began = time.perf_counter()
        reader.write(DECODE_TOKENS)
        torch.cuda.synchronize()
        rate = lanes * DECODE_TOKENS / (time.perf_counter() - began)
        print(f"  batch {lanes}   {rate:,.0f} tok/s, drawn on the device")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="scan, operations, training, decoding")
    parser.add_argument("--no-compile", action="store_true", help="capture the plain model")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}, {datetime.date.today()}")
    parts: dict[str, Callable[[], None]] = {
        "scan": scans,
        "operations": operations,
        "training": lambda: trainings(not options.no_compile),
        "decoding": decoding,
    }
    for name in options.parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
