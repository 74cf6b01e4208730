"""The Runs tab with 500 runs of 100,000 events each: how soon it is there, and how soon it follows a key.

    python -m benchmarks.runs_tab [--runs 500] [--events 100000]

A real console in a pseudo-terminal of 120x40. The histories are one file under 500 names, whose pages are in
memory; each is read on its own all the same. Measured first with no summaries kept from before, as after an
update, then with those that the console before has kept, as every day.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.console import LAUNCH, Terminal, percentile

PAGE_DOWN, DOWN, HOME, END, F7 = b"\x1b[6~", b"\x1b[B", b"\x1b[H", b"\x1b[F", b"\x1b[18~"


def main() -> None:
    """Build the runs, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--events", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        begin = time.perf_counter()
        build(root, arguments.runs, arguments.events)
        size = (root / "run-001" / "events.jsonl").stat().st_size / 1e6
        print(
            f"{arguments.runs} runs of {arguments.events:,} events ({size:.0f} MB each), "
            f"built in {time.perf_counter() - begin:.0f} s; load {os.getloadavg()[0]:.1f}"
        )
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        opened("nothing kept, while histories are read", root, arguments.runs, keep=True)
        opened("summaries kept", root, arguments.runs)
        opened("summaries kept", root, arguments.runs)


def build(root: Path, runs: int, events: int) -> None:
    """Runs that differ in their configuration and share a history."""
    from core.config.changes import replace
    from core.config.schema import RunConfig
    from core.runs import prepare_run

    master = root / "events.jsonl"
    root.mkdir(parents=True)
    write_history(master, events)
    for number in range(1, runs + 1):
        config = replace(RunConfig(), learning_rate=1e-4 * (1 + number % 20), dropout=number % 5 / 10)
        run = prepare_run(root, name_of(number), config)
        os.link(master, run.events_path)
    master.unlink()
    state = {"tab": "configure", "run_sort": "name"}
    (root / ".mamba-tui-console.json").write_text(json.dumps(state))


def name_of(number: int) -> str:
    return f"run-{number:03d}"


def write_history(path: Path, events: int) -> None:
    """One run's: a step event ten times a second, an evaluation every 1,000 of them."""
    first = {"kind": "run", "time": 0.0, "schema": 1, "run": "run", "pid": 1, "boot_id": "", "started": 0.0,
             "device": "cpu", "parameters": 1_000_000, "vocab_size": 4096, "tokens_per_step": 4096,
             "max_iters": events, "resumed_from": None, "versions": {}, "config": {},
             "changes": {}}  # fmt: skip
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(first) + "\n")
        for step in range(1, events - 1):
            value = 2 + 5 / (1 + step / 1000)
            file.write(
                f'{{"kind":"step","time":{step}.5,"step":{step},"steps":1,"loss":{value:.6f},'
                f'"loss_min":1.0,"loss_max":4.0,"learning_rate":0.001,"gradient_norm":1.0,"tokens_per_second":1000.0,'
                f'"tokens":{4096 * step},"data_wait":0.0,"device_memory":null,"epoch":0.5}}\n'
            )
            if step % 1000 == 0:
                file.write(
                    f'{{"kind":"eval","time":{step}.6,"step":{step},"train_loss":{value:.6f},'
                    f'"validation_loss":{value:.6f},"bits_per_byte":{value / 2:.6f},'
                    f'"train_bits_per_byte":{value / 2:.6f},"seconds":1.0}}\n'
                )
        end = {"kind": "end", "time": events + 1.0, "reason": "finished", "step": events, "message": "",
               "checkpoint": None}  # fmt: skip
        file.write(json.dumps(end) + "\n")


def opened(what: str, root: Path, runs: int, *, keep: bool = False) -> None:
    """Open the tab in a new console, go through it; with `keep`, until all is read and kept."""
    terminal = Terminal([sys.executable, "-c", LAUNCH, str(root), ""], root.parent)
    try:
        terminal.wait_for(b"Start")
        terminal.drain(3.0)
        used = terminal.cpu_seconds()
        seconds = after(terminal, F7, name_of(20))
        used = terminal.cpu_seconds() - used
        jumps = [after(terminal, key, name) for _ in range(10)
                 for key, name in ((END, name_of(runs)), (HOME, name_of(1)))]  # fmt: skip
        rows = [after(terminal, DOWN, name_of(number)) for number in range(2, 62)]
        print(f"  {what}: the tab is there after {seconds:.3f} s, of processor time {used:.2f} s")
        for words, times in (("End and Home", jumps), ("one row down", rows)):
            print(
                f"    {words}, key to paint: p50 {statistics.median(times) * 1e3:.0f} ms, "
                f"p95 {percentile(times, 0.95) * 1e3:.0f} ms, longest {max(times) * 1e3:.0f} ms"
            )
        if keep:
            begin = time.perf_counter()
            wait_until_kept(terminal, root, runs)
            print(f"    all histories read and kept {time.perf_counter() - begin:.0f} s later")
    finally:
        terminal.close()


def after(terminal: Terminal, key: bytes, text: str) -> float:
    """Seconds from a key to a text on screen."""
    terminal.drain(0.15)
    os.write(terminal.fd, key)
    return terminal.wait_for(text.encode())


def wait_until_kept(terminal: Terminal, root: Path, runs: int) -> None:
    """Until the console has kept the summaries of all runs."""
    from core.runs.listing import cache

    path = cache.cache_path(root)
    while len(cache.load(path)) < runs:
        terminal.drain(1.0)


if __name__ == "__main__":
    main()
