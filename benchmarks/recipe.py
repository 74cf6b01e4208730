"""Which recipe learns best: the arms of an experiment, trained to their end side by side, as a table.

    python -m benchmarks.recipe NAME... [--data DIR] [--out DIR] [--at-once N] [--seeds N] [--device D]

NAME is one of `benchmarks/recipe_experiments.py`. Every arm is a run of the real trainer in a process of its
own (`recipe_arm.py`). At its end the model that would be kept reads the whole validation text: in one stream
with the state carried, and in windows of `block_size`, each from an empty state. Finished arms stand in
OUT/results.jsonl and are not run again, so an experiment that was cut off goes on when it is called again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.recipe_experiments import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
Arm = tuple[str, str, int]
"""Experiment, arm, seed."""


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = read(results)
    waiting = [
        (name, arm, seed)
        for seed in range(1, options.seeds + 1)
        for name in options.names
        for arm in EXPERIMENTS[name].arms
        if (not options.arms or arm in options.arms.split(",")) and (name, arm, seed) not in done
    ]
    run_all(waiting, options)
    for name in options.names:
        print_table(name, read(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the experiments' texts")
    parser.add_argument("--out", type=Path, default=Path("recipe-results"))
    parser.add_argument("--at-once", type=int, default=1, help="arms trained side by side")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", default="", help="only these, separated by commas")
    parser.add_argument("--limit", type=float, default=math.inf, help="start no arm after so many seconds")
    return parser.parse_args()


def run_all(waiting: list[Arm], options: argparse.Namespace) -> None:
    """Train every arm, `at_once` at a time."""
    began = time.monotonic()
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    while waiting or running:
        if time.monotonic() - began > options.limit:
            waiting = []
        while waiting and len(running) < options.at_once:
            arm = waiting.pop(0)
            running[arm] = start(arm, options)
        for arm, process in list(running.items()):
            if process.poll() is not None:
                del running[arm]
                if process.returncode:
                    print(f"{' '.join(map(str, arm))} failed:\n{log(arm, options).read_text()[-1500:]}")
        time.sleep(0.2)


def log(arm: Arm, options: argparse.Namespace) -> Path:
    return options.out / ("-".join(map(str, arm)) + ".log")


def start(arm: Arm, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.recipe_arm", *map(str, arm)]
    command += [str(options.data.resolve()), str(options.out.resolve()), options.device]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(log(arm, options), "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=environment)


def read(path: Path) -> dict[Arm, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["experiment"], row["arm"], row["seed"]): row for row in rows}


COLUMNS = {
    "streamed": "10.4f", "windows": "9.4f", "bits_per_byte": "15.4f", "last": "8.4f", "best": "8.4f",
    "best_step": "11.0f", "train": "8.3f", "parameters": "12,.0f", "passes": "8.1f", "seconds": "9.0f",
}  # fmt: skip


def print_table(name: str, rows: dict[Arm, dict[str, Any]]) -> None:
    """The arms, the best first: means over the seeds, and the spread of `streamed` between them."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for (experiment, arm, _), row in rows.items():
        if experiment == name:
            arms.setdefault(arm, []).append(row)
    print(f"\n{name}: {EXPERIMENTS[name].about}")
    widths = {column: int(form.rstrip("f").split(".")[0].rstrip(",")) for column, form in COLUMNS.items()}
    print(f"{'arm':<18}{'seeds':>5}{'spread':>8}" + "".join(f"{c:>{w}}" for c, w in widths.items()))
    for arm, group in sorted(arms.items(), key=lambda item: statistics.mean(r["streamed"] for r in item[1])):
        means = {column: statistics.mean(row[column] for row in group) for column in COLUMNS}
        spread = statistics.stdev(row["streamed"] for row in group) if len(group) > 1 else math.nan
        figures = "".join(format(means[column], form) for column, form in COLUMNS.items())
        print(f"{arm:<18}{len(group):>5}{spread:>8.4f}{figures}", flush=True)


if __name__ == "__main__":
    main()
