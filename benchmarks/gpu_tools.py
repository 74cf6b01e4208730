"""What the parts of `benchmarks.gpu` share: where they measure, how they time, how they report."""

from __future__ import annotations

import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Place:
    """Where and how thoroughly to measure; set once, by the command line."""

    device = "cuda"
    quick = False


def say(text: str) -> None:
    """Print at once, and keep it where files come back from."""
    print(text, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "gpu.txt").open("a") as file:
            file.write(text + "\n")


@contextmanager
def apart(what: str) -> Iterator[None]:
    """Go on after a failure, and say what it was."""
    try:
        yield
    except Exception as error:
        say(f"  {what} FAILED: {type(error).__name__}: {str(error).strip()[:600]}")
        traceback.print_exc()


def wait() -> None:
    """Until the device has done what it was given."""
    if Place.device == "cuda":
        torch.cuda.synchronize()


def reset_peak() -> int:
    """Begin to count memory anew; the bytes held now."""
    if Place.device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak() -> int:
    """The most bytes held since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if Place.device == "cuda" else 0


def graph_ms(work: Callable[[], object], repeats: int = 20) -> float:
    """Milliseconds of one replay of what `work` launches, the median."""
    if Place.device != "cuda":
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
