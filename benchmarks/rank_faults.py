"""Ranks that are killed, and ranks on machines of their own. Started by benchmarks/ranks.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.runs import Run
from core.system.processes import module_environment

KILL_STEPS, KILL_SAVES = 4000, 5
KILL_SECONDS = 85
"""For how long ranks on a device are killed."""


def environment() -> dict[str, str]:
    """Of ranks: no multicast over NVLink, few threads."""
    return {"OMP_NUM_THREADS": "1", **module_environment(), "NCCL_NVLS_ENABLE": "0"}


class Killer:
    """Kills one of a run's ranks again and again: mostly while it trains, else while it starts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._chance = random.Random(options.chance)
        self._began = time.monotonic()
        self._last_step = 0
        self._early = False
        self.seconds: list[float] = []
        """From each kill until all ranks had ended."""
        self.early_kills = 0

    def strike(self, pid: int, step: int) -> bool:
        """Kill a rank of the run if it is time to; False when it was the last kill.

        On a device it ends in time for a part's two minutes.
        """
        late = self._options.device != "cpu" and time.monotonic() - self._began > KILL_SECONDS
        if len(self.seconds) == self._options.kills or late:
            return False
        if len(children(pid)) < self._options.ranks or not (self._early or step > self._last_step):
            return True
        time.sleep(self._chance.random() * 1.5)
        ranks = children(pid)
        if len(ranks) == self._options.ranks:
            victim = self._chance.choice(ranks)
            os.kill(victim, signal.SIGKILL)
            before = time.monotonic()
            while any(other in children(pid) for other in ranks):
                time.sleep(0.02)
            self.seconds.append(time.monotonic() - before)
            self.early_kills += self._early
            when = "while starting" if self._early else f"after step {step}"
            print(
                f"  killed process {victim} {when}: all had ended after {self.seconds[-1]:.2f} s", flush=True
            )
            self._last_step, self._early = max(self._last_step, step), self._chance.random() < 0.25
        return True


def kill(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Kill random ranks of a run at random moments; its curve must equal that of an undisturbed run."""
    os.environ |= environment() | {"MAMBA_TUI_EVENT_SECONDS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root / "text")
        whole, curve = one_run(root, "whole", options, lambda pid, step: False)
        killer = Killer(options)
        code, again = one_run(root, "struck", options, killer.strike)
    steps = sorted(curve)
    worst = max((abs(again[step] - curve[step]) for step in steps if step in again), default=float("nan"))
    figures = {
        "part": "kill",
        "ranks": options.ranks,
        "kills": len(killer.seconds),
        "kills_while_starting": killer.early_kills,
        "exit_code": code,
        "steps": len(again),
        "steps_expected": len(steps),
        "largest_difference_of_a_loss": worst,
        "seconds_until_all_had_ended": killer.seconds,
    }
    results.append(figures)
    print(
        f"kill: {len(killer.seconds)} times, of which {killer.early_kills} while starting, exit code {code} "
        f"(left alone: {whole}), {len(again)} of {len(steps)} steps, largest difference of a loss {worst:g}; "
        f"all ranks ended within {max(killer.seconds, default=0):.2f} s"
    )


def machines(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """One rank each of two torchruns on this host; the curve must be that of one launcher's two ranks."""
    os.environ |= environment() | {"MAMBA_TUI_EVENT_SECONDS": "0"}
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(socket.create_server(("", 0))) as free:
        root = Path(folder)
        write_text(root / "text")
        options.ranks, port = 2, free.getsockname()[1]
        _, curve = one_run(root, "launched", options, lambda pid, step: False)
        run = new_run(root, "machines", options)
        free.close()
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}",
            "--rdzv-id", run.name, "-m", "core.training.process", str(run.path),
        ]  # fmt: skip
        nodes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
        codes = [node.wait() for node in nodes]
        again = learned(run)
    results.append({"part": "machines", "exit_codes": codes, "steps": len(again), "same": again == curve})
    print(f"machines: exit codes {codes}, {len(again)} of {len(curve)} steps, same curve: {again == curve}")


def write_text(folder: Path) -> None:
    """A text of which something can be learned."""
    folder.mkdir()
    (folder / "book.txt").write_text(" ".join(f"word{(i * i) % 97} and" for i in range(60_000)))


def one_run(
    root: Path, name: str, options: argparse.Namespace, strike: Callable[[int, int], bool]
) -> tuple[int, dict[int, float]]:
    """A run with N ranks, struck by `strike(pid, step)`; its exit code and its curve."""
    from core.runs import start_trainer, trainer_exit_code
    from core.runs.history import Follower

    run = new_run(root, name, options)
    pid = start_trainer(run)
    follower = Follower(run.events_path)
    more = True
    while (code := trainer_exit_code(pid)) is None:
        follower.poll()
        more = more and strike(pid, max(0, follower.history.step))
        time.sleep(0.02)
    if code:
        print(run.log_path.read_text(errors="replace")[-2000:])
    return code, learned(run)


def new_run(root: Path, name: str, options: argparse.Namespace) -> Run:
    """A run of a tiny model with N ranks."""
    from core.config.schema import build
    from core.runs import prepare_run

    config = build(
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "attention_type": ["mamba", "standard"],
            "block_size": 32,
            "batch_size": 4 * options.ranks,
            "tokenizer": "byte",
            "dropout": 0.1,
            "dataset_dir": str(root / "text"),
            "max_iters": 300 if options.quick else KILL_STEPS,
            "eval_interval": 1000,
            "eval_iters": 2,
            "checkpoint_interval": KILL_SAVES,
            "sample_tokens": 0,
            "device": options.device,
            "ranks": options.ranks,
            "threads": 1,
            "compile": "false",
        }
    )
    return prepare_run(root, name, config, mode="auto")


def learned(run: Run) -> dict[int, float]:
    """The loss of each step."""
    from core.runs.history import Follower

    follower = Follower(run.events_path)
    follower.poll()
    table = follower.history.steps
    return dict(zip(map(int, table.column("step")), map(float, table.column("loss"))))


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != b"Z" and b"core.training" in cmdline(entry):
                pids.append(int(entry.name))
    return pids


def cmdline(entry: Path) -> bytes:
    """The command of a process."""
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
