"""Speed on one CUDA GPU: training steps, decoding and operations, compared with other projects.

    python -m benchmarks.gpu [PART ...] [--limit SECONDS]

Without a PART it measures everything and runs the tests marked `cuda`. Every part runs in its own process,
so one that fails or hangs doesn't affect the others, and each figure is printed as soon as it is known (and
appended to $OUT/gpu.txt if OUT is set). The most important parts come first; those that no longer fit into
the limit are skipped. Peers are measured beside ours if they are installed (`benchmarks/gpu_peers.py`);
the peers' figures written in this file are from the same kind of GPU on another day. Operations are timed
as replays of a CUDA graph, the median of 20.

`--device cpu --quick` runs every part with tiny shapes: a rehearsal, not a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_measure import (
    keep_going,
    peak_memory,
    replay_ms,
    report,
    reset_peak_memory,
    settings,
    synchronize,
)
from benchmarks.gpu_operations import operations, scans
from benchmarks.gpu_peers import nanogpt, peer_scans
from benchmarks.shapes import LARGE, ORIGINAL
from core.config.schema import build
from core.data.loader import SequentialLoader
from core.model import GPT
from core.training.benchmark import RandomStream
from core.training.build import open_device
from core.training.compilation import compiled
from core.training.cuda_graph_step import CUDAGraphStep
from core.training.optimizer import make_optimizer

MAMBA2 = LARGE | {"attention_type": ["mamba2", "standard"] * 6}
TINY = {"n_layer": 2, "n_embd": 16, "n_head": 2, "block_size": 8, "batch_size": 2}
# part: (name, shape, vocabulary, dropout, compiled, best peer's tokens/s, target)
TRAININGS: dict[str, tuple[str, dict[str, Any], int, float, bool, float | None, float | None]] = {
    "train-original": ("preset original", ORIGINAL, 50257, 0.1, True, 588e3, 1.7e6),
    "train-4096": ("the same widths, 4,096 tokens", ORIGINAL, 4096, 0.0, True, None, 3e6),
    "train-large": ("12 x 768, every second Mamba", LARGE, 50257, 0.0, True, 449e3, 449e3),
    "train-plain": ("the same widths, 4,096 tokens, not compiled", ORIGINAL, 4096, 0.0, False, None, None),
    "train-mamba2": ("12 x 768, every second Mamba-2", MAMBA2, 50257, 0.0, True, 449e3, None),
}
# Time limit of each part in seconds, with cold caches; the most important parts first.
PARTS = {
    "train-original": 150,
    "train-4096": 150,
    "decode": 60,
    "train-large": 180,
    "tests": 240,
    "scan": 90,
    "peer-scans": 60,
    "nanogpt": 150,
    "operations": 60,
    "train-plain": 60,
    "train-mamba2": 180,
}
LEAST = 20
"""No part is started with fewer seconds left."""
LIMIT = 530
DECODE_TOKENS, DECODE_TARGET, DECODE_PEERS = 4000, 3000, "mamba_ssm with a CUDA graph 2,182, nanoGPT 26"
STEPS, PROFILED_STEPS, TOP_KERNELS = 50, 5, 16


def training(part: str) -> None:
    """One shape: tokens per second, time spent waiting for data, and the most expensive kernels."""
    name, shape, vocabulary, dropout, compiling, peer, target = TRAININGS[part]
    if settings.quick:
        shape, vocabulary, compiling = (
            shape | TINY | {"attention_type": shape["attention_type"][:2]},
            64,
            False,
        )
    torch.manual_seed(0)
    values = {"dropout": dropout, "max_iters": 1000, "dtype": "bfloat16", "device": settings.device}
    config = build(shape | values)
    device = open_device(config)
    rows, block = config.training.batch_size, config.model.block_size
    model = GPT(config.model, vocabulary).to(device).train()
    loader = SequentialLoader(RandomStream(2_000_000, vocabulary), vocabulary - 1, rows, block, 8, seed=1)
    optimizer = make_optimizer(model, config.training)
    forward = compiled(model) if compiling else model
    step = CUDAGraphStep(model, forward, optimizer, loader, config, device)
    began = time.perf_counter()
    step.run(1)
    step.read(wait=True)
    report(f"\n{name}: first step {time.perf_counter() - began:.1f} s")
    count = 2 if settings.quick else STEPS
    for number in range(2, 8):
        step.run(number)
    synchronize()
    step.read(wait=True)
    began = time.perf_counter()
    for number in range(8, 8 + count):
        step.run(number)
    synchronize()
    each = (time.perf_counter() - began) / count
    rate = rows * block / each
    beside = f", peer {peer:,.0f} ({rate / peer:.2f} x)" if peer else ""
    beside += f", target {target:,.0f} ({rate / target:.2f} x)" if target else ""
    report(
        f"  {each * 1e3:.3f} ms, {rate:,.0f} tok/s{beside}, {peak_memory() / 2**30:.2f} GiB,"
        f" {'captured' if step._graphs else 'NOT captured'} {step.notices or ''}"
    )
    metrics = step.read(wait=True)
    fed = statistics.median(item.waited for item in metrics) / each
    report(f"  the host spends {fed:.2%} of a step on feeding data; last loss {metrics[-1].loss:.3f}")
    if step._graphs:
        with keep_going("waiting"):
            busy = statistics.median(replay_ms(step._graphs[0]) for _ in range(20))
            report(f"  a replay alone {busy:.3f} ms: the device waits {max(0.0, 1 - busy / each / 1e3):.2%}")
    with keep_going("profile"):
        kernels(lambda: step.run(8 + count))


def kernels(work: Callable[[], object]) -> None:
    """How many kernels `work` launches, and which take the most time."""
    on_gpu = settings.device == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    work()
    synchronize()
    with profile(activities=[activity]) as profiled:
        for _ in range(PROFILED_STEPS):
            work()
        synchronize()
    rows = [
        (row.self_device_time_total if on_gpu else row.self_cpu_time_total, row.count, row.key)
        for row in profiled.key_averages()
    ]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    time_each, count = sum(row[0] for row in rows) / PROFILED_STEPS, sum(row[1] for row in rows)
    report(f"  a step: {count / PROFILED_STEPS:.0f} kernels and copies, {time_each:,.0f} us")
    for total, times, name in rows[:TOP_KERNELS]:
        report(f"  {total / PROFILED_STEPS:9.1f} us {times / PROFILED_STEPS:6.1f} x  {name[:90]}")


def decoding() -> None:
    """Batch 1 and 8, tokens sampled on the device; then through the program's own `Decoder`."""
    from core.generation.cuda.graph_decoder import GraphDecoder

    report(
        f"\ndecoding, preset original, float32; target {DECODE_TARGET:,}, peers at batch 1: {DECODE_PEERS}"
    )
    torch.manual_seed(0)
    shape, vocabulary, count = ORIGINAL, 50257, DECODE_TOKENS
    if settings.quick:
        shape, vocabulary, count = ORIGINAL | TINY | {"attention_type": ["mamba", "standard"]}, 64, 3
    model = GPT(build(shape).model, vocabulary).to(settings.device).eval()
    for rows in (1, 8):
        with keep_going(f"batch {rows}"):
            graph = GraphDecoder(model, -1, rows)
            graph.generate(min(count, 10))
            synchronize()
            began = time.perf_counter()
            graph.generate(count)
            synchronize()
            rate = rows * count / (time.perf_counter() - began)
            report(f"  batch {rows}   {rate:,.0f} tok/s, sampled on the device")
            if rows == 1:
                kernels(lambda: graph.generate(1))  # noqa: B023
    with keep_going("decoder"):
        from core.config.sampling import SamplingSettings
        from core.data.tokenizer.tokenizer import byte_tokenizer
        from core.generation.decoder import Decoder
        from core.generation.generation import Generation

        choices: list[dict[str, Any]] = [
            {"temperature": 1.0}, {"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.9},
            {"repetition_penalty": 1.2, "alternatives": 10},
        ]  # fmt: skip
        for choice in choices:
            decoder = Decoder(model, vocabulary - 1)
            decoder.eot = -1  # a random model must not end the text
            sampling = SamplingSettings(max_new_tokens=min(count, 500), **choice)
            for _ in range(2):
                began = time.perf_counter()
                written = sum(1 for _ in Generation(decoder, byte_tokenizer(), sampling))
                rate = written / (time.perf_counter() - began)
            what = ", ".join(f"{name} {value}" for name, value in choice.items())
            report(f"  batch 1   {rate:,.0f} tok/s as the program generates, {what}")


def tests() -> None:
    """The tests that need a CUDA device."""
    report("\ntests marked cuda")
    where = ["tests/training/test_cuda_graph_step.py"] if settings.quick else ["tests"]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n0", "-v", "--tb=short", "--no-header", *where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            # Report at once: this part may hit its limit before pytest prints its summary.
            if "FAILED" in line or "ERROR" in line or line.startswith(("E  ", "==")):
                report(f"  {line.rstrip()[:160]}")


def run_part(name: str) -> None:
    """Measure one part in this process."""
    reset_peak_memory()
    works: dict[str, Callable[[], None]] = {
        "decode": decoding,
        "tests": tests,
        "scan": scans,
        "peer-scans": peer_scans,
        "nanogpt": nanogpt,
        "operations": operations,
    }
    with keep_going(name):
        if name in TRAININGS:
            training(name)
        else:
            works[name]()


def run_parts(names: list[str], limit: float) -> None:
    """Run each part in its own process, killed at its time limit."""
    end = time.monotonic() + limit
    for name in names:
        left = end - time.monotonic()
        if left < LEAST:
            report(f"\n{name}: skipped, only {left:.0f} s left")
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", name, "--alone", "--device", settings.device]
        if settings.quick:
            command.append("--quick")
        began = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(min(left, PARTS[name]))
            ending = "" if code == 0 else f", exit code {code}"
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own group: the compiler's workers too
            process.wait()
            ending = ", STOPPED at its limit"
        report(f"  ({name}: {time.monotonic() - began:.0f} s{ending})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all parts (default 530)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: check that every part runs")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; accepted: {', '.join(PARTS)}")
    settings.device, settings.quick = options.device, options.quick
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    if options.alone:
        run_part(options.parts[0])
        return
    import triton

    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, a rehearsal"
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    report(f"{device}, {versions}, {datetime.date.today()}, limit {options.limit:.0f} s")
    run_parts(options.parts or list(PARTS), options.limit)


if __name__ == "__main__":
    main()
