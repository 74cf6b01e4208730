"""What the parts of `benchmarks.gpu` share: settings, timing, memory, and reports."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Settings:
    """Where and how thoroughly to measure."""

    device: str = "cuda"
    quick: bool = False


settings = Settings()
"""Set once, by the command line."""


def report(text: str) -> None:
    """Print at once, and append to `$OUT/gpu.txt` if OUT names a folder."""
    print(text, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "gpu.txt").open("a") as file:
            file.write(text + "\n")


@contextmanager
def keep_going(what: str) -> Iterator[None]:
    """Report a failure and continue with the next measurement."""
    try:
        yield
    except Exception as error:
        report(f"  {what} FAILED: {type(error).__name__}: {str(error).strip()[:600]}")
        traceback.print_exc()


def synchronize() -> None:
    """Wait until the device has finished its queue."""
    if settings.device == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory() -> int:
    """Start a new measurement of peak memory. Returns the bytes allocated now."""
    if settings.device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory() -> int:
    """The most bytes allocated since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated() if settings.device == "cuda" else 0


def graph_ms(work: Callable[[], object], repeats: int = 20) -> float:
    """Milliseconds of one replay of a CUDA graph of `work`, the median."""
    if settings.device != "cuda":
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1e3
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
    return statistics.median(replay_ms(graph) for _ in range(repeats + 3))


def replay_ms(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds that one replay keeps the device busy."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def ratio(peer: float | None, own: float) -> str:
    return "" if peer is None else f"{peer / own:.2f} x"
