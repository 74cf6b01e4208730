"""Speed and failures of training with several ranks, compared with one rank in the same call.

    python -m benchmarks.ranks [PART ...] [--ranks N] [--seconds S] [--kills K] [--json FILE]

Parts: original, large, large-compiled, billion, kill (all of them without a PART). Those that must be named:

- arms: what the sums of gradients cost `large` with other buckets and with fewer thread blocks for NCCL
- machines: two torchruns, as on two machines (docs/ranks.md), must learn what one launcher does; on a CPU

The rows per card stay the same from one card to N (weak scaling). Each figure is the median over steps of a
CUDA graph's replays, waited for every ten steps. Every part runs in its own processes, started by torchrun,
and ends within two minutes; kills on a CPU and arms take longer.

`--device cpu --quick` is a rehearsal with tiny shapes, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rank_faults import environment, kill, machines
from benchmarks.shapes import LARGE, ORIGINAL

BILLION = LARGE | {"n_layer": 18, "n_embd": 2048, "n_head": 16, "attention_type": ["mamba", "standard"] * 9}
TINY = {"n_layer": 2, "n_embd": 16, "n_head": 2, "block_size": 16, "batch_size": 2}
# part: (shape, vocabulary, compiled, rows per card to try in turn if memory runs out)
TRAININGS: dict[str, tuple[dict[str, Any], int, bool, tuple[int, ...]]] = {
    "original": (ORIGINAL | {"dropout": 0.1}, 50257, False, (64,)),
    "large": (LARGE, 50257, False, (16,)),
    "large-compiled": (LARGE, 50257, True, (16,)),
    "billion": (BILLION, 50257, False, (16, 8, 4)),
}
PARTS = (*TRAININGS, "kill")
NAMED_PARTS = ("arms", "machines")
ARMS: dict[str, tuple[int, dict[str, str]]] = {
    "buckets of 8 Mi": (8, {}),  # as the trainer's are
    "2 Mi": (2, {}),
    "32 Mi": (32, {}),
    "one bucket": (1 << 10, {}),
    "8 Mi, 4 blocks": (8, {"NCCL_MAX_CTAS": "4"}),
    "8 Mi, 8 blocks": (8, {"NCCL_MAX_CTAS": "8"}),
    "8 Mi, 16 blocks": (8, {"NCCL_MAX_CTAS": "16"}),
}
"""Elements of a bucket of gradients, in Mi; environment of the ranks."""
BF16_PEAK = 989e12
"""FLOP/s of an H100 SXM or H200 in bf16, without sparsity."""
PART_SECONDS = 115


def measure(part: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One shape on the ranks that torchrun has started. Returns the figures on rank 0."""
    import torch

    from core.config.estimates import flops_per_token
    from core.config.schema import build
    from core.data.loader import SequentialLoader
    from core.model import GPT
    from core.training import gradient_buckets
    from core.training.benchmark import RandomStream
    from core.training.build import open_device
    from core.training.compilation import compiled
    from core.training.cuda_graph_step import CUDAGraphStep
    from core.training.launcher import torchrun_place
    from core.training.optimizer import make_optimizer
    from core.training.ranks import Ranks

    ranks = Ranks(*torchrun_place())
    shape, vocabulary, compiling, _ = TRAININGS[part]
    if options.quick:
        kinds = shape["attention_type"][:2]
        shape, vocabulary, compiling = shape | TINY | {"attention_type": kinds}, 64, False
    rows = options.rows or int(shape["batch_size"])
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    config = build(
        shape | {"batch_size": rows * ranks.size, "max_iters": 1000, "dtype": dtype, "device": options.device}
    )
    device = open_device(config, ranks)
    ranks.join(device)
    gradient_buckets.BUCKET_ELEMENTS = options.bucket << 20
    torch.manual_seed(0)
    model = GPT(config.model, vocabulary).to(device).train()
    optimizer = make_optimizer(model, config.training, ranks)
    batch, block = config.training.batch_size, config.model.block_size
    loader = SequentialLoader(
        RandomStream(max(2_000_000, 64 * batch * block), vocabulary), vocabulary - 1,
        batch, block, 8, seed=1, rows=ranks.share(batch),
    )  # fmt: skip
    forward = compiled(model) if compiling else model
    step = CUDAGraphStep(model, forward, optimizer, loader, config, device, ranks)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    number, began = 0, time.perf_counter()

    def some(count: int) -> float:
        nonlocal number
        before = time.perf_counter()
        for _ in range(count):
            number += 1
            ranks.numbers_from_first(decision)  # what a trainer asks rank 0 before every step
            step.run(number)
        synchronize()
        return (time.perf_counter() - before) / count

    decision = torch.zeros(3, dtype=torch.int64)
    some(1)
    first = time.perf_counter() - began
    some(5)
    durations: list[float] = []
    # Every rank must run as many steps as the others.
    while ranks.from_first(lambda: len(durations) < 3 or sum(durations) * 10 < options.seconds):
        durations.append(some(10))
    metrics = step.read(wait=True)
    seconds = statistics.median(durations)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    speed = batch * block / seconds
    flops = flops_per_token(config.model, vocabulary) * speed / ranks.size
    ranks.leave()
    return {
        "part": part,
        "ranks": ranks.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rows_a_card": rows,
        "compiled": compiling,
        "captured": bool(step._graphs),
        "sharded": optimizer.sharded,
        "step_ms": seconds * 1e3,
        "fastest_step_ms": min(durations) * 1e3,
        "tokens_per_second": speed,
        "share_of_bf16_peak": flops / BF16_PEAK,
        "memory_bytes": memory,
        "first_step_seconds": first,
        "last_loss": metrics[-1].loss,
        "notices": step.notices,
    }


def start(
    part: str, ranks: int, rows: int, options: argparse.Namespace, arm: str = "buckets of 8 Mi"
) -> dict[str, Any] | None:
    """Measure in processes of their own; None where they failed, whose last words are printed."""
    bucket, changes = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            "-m", "benchmarks.ranks", part, "--measure", str(file), "--rows", str(rows),
            "--seconds", str(options.seconds), "--device", options.device, *(["--quick"] * options.quick),
            "--bucket", str(bucket),
        ]  # fmt: skip
        log = Path(folder) / "log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                command,
                env=environment() | changes,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | str = process.wait(PART_SECONDS)
            except subprocess.TimeoutExpired:
                code = f"none after {PART_SECONDS} s"
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
        if file.exists():
            result: dict[str, Any] = json.loads(file.read_text())
            return result
        words = log.read_text(errors="replace")
        lines = [line for line in words.splitlines() if "Error" in line] or words.splitlines()
        print(f"{part} on {ranks}: exit code {code}\n  " + "\n  ".join(line[:300] for line in lines[-12:]))
        return None


def scaling(part: str, options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """The part on one card and on N, in a table of two lines."""
    one: dict[str, Any] | None = None
    for rows in TRAININGS[part][3]:
        rows = TINY["batch_size"] if options.quick else rows
        # What fits on N cards may not fit on one, where the optimizer's state isn't divided.
        pair = [start(part, ranks, rows, options) for ranks in (1, options.ranks)]
        if pair[-1] is not None or options.quick:
            break
    for figures in filter(None, pair):
        one = figures if figures["ranks"] == 1 else one
        scale = figures["tokens_per_second"] / one["tokens_per_second"] if one else float("nan")
        figures["scaling"] = scale
        results.append(figures)
        print(
            f"{part:15} {figures['ranks']} x {figures['device']}, {figures['parameters'] / 1e6:.0f} M, "
            f"{figures['rows_a_card']} rows a card: {figures['step_ms']:.3f} ms a step, "
            f"{figures['tokens_per_second']:,.0f} tokens/s, {scale:.3f} x, "
            f"{figures['share_of_bf16_peak']:.1%} of bf16 peak, {figures['memory_bytes'] / 2**30:.1f} GiB, "
            f"first step {figures['first_step_seconds']:.1f} s"
            + ("" if figures["captured"] else ", not captured")
            + (", sharded" if figures["sharded"] else "")
            + "".join(f"\n    {notice}" for notice in figures["notices"]),
            flush=True,
        )


def arms(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """`large` on one card, then on N with each arm."""
    rows = TINY["batch_size"] if options.quick else TRAININGS["large"][3][0]
    one = start("large", 1, rows, options)
    for arm in ARMS:
        figures = start("large", options.ranks, rows, options, arm)
        if figures is not None and one is not None:
            scale = figures["tokens_per_second"] / one["tokens_per_second"]
            results.append(figures | {"part": "arms", "arm": arm, "scaling": scale})
            print(
                f"arms: {arm:16} {figures['step_ms']:.3f} ms a step (one card: {one['step_ms']:.3f}), "
                f"{scale:.3f} x" + ("" if figures["captured"] else ", not captured"),
                flush=True,
            )


OTHERS = {"kill": kill, "arms": arms, "machines": machines}


def main() -> int:
    """Measure what is asked for; print a line a figure and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS + NAMED_PARTS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timed steps")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--chance", type=int, default=0, help="random seed of the kills")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default=str(Path(os.environ.get("OUT", ".")) / "ranks.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--bucket", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS + NAMED_PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; accepted: {', '.join(PARTS + NAMED_PARTS)}")
    if options.measure:
        figures = measure(options.parts[0], options)
        if os.environ.get("RANK", "0") == "0":
            Path(options.measure).write_text(json.dumps(figures))
        return 0
    results: list[dict[str, Any]] = []
    for part in options.parts or PARTS:
        if part in OTHERS:
            OTHERS[part](options, results)
        else:
            scaling(part, options, results)
        Path(options.json).write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    from core.training.launcher import end_process

    end_process(main())
