"""How exact resuming is on a device: one run uninterrupted, repeated, and interrupted half way.

python -m benchmarks.resume [--device cuda] [--steps 60]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from core.config.files import preset
from core.config.schema import build
from core.runs import Run, prepare_run
from tests.run_tools import curve, train_here, write_text


def losses(run: Run) -> list[float]:
    return [loss for _, loss in curve(run)]


def compare(root: Path, device: str, steps: int, deterministic: bool) -> None:
    base = preset("book", cuda=False)
    values = {
        "n_embd": [256, 192, 128, 256],
        "n_head": 4,
        "attention_type": ["mamba", "standard", "mamba2", "mamba"],
        "block_size": 128,
        "batch_size": 16,
        "dropout": 0.1,
        "tokenizer": "byte",
        "dataset_dir": str(root / "text"),
        "learning_rate": base.training.learning_rate,
        "max_iters": steps,
        "eval_interval": steps,
        "eval_iters": 2,
        "sample_tokens": 0,
        "device": device,
        "deterministic": deterministic,
        "threads": 1,
    }
    name = "deterministic" if deterministic else "free"
    runs = [prepare_run(root, f"{name}-{kind}", build(values)) for kind in ("whole", "again", "cut")]
    began = time.perf_counter()
    for run in runs[:2]:
        assert train_here(run) == 0
    assert train_here(runs[2], stop_at=steps // 2) == 130
    assert train_here(runs[2]) == 0
    whole, again, cut = map(losses, runs)
    repeated = max(abs(one - two) for one, two in zip(whole, again))
    resumed = max(abs(one - two) for one, two in zip(whole, cut))
    words = [f"{difference:.1e}" if difference else "bit for bit" for difference in (repeated, resumed)]
    print(
        f"{device}, {name}: repeated {words[0]}, resumed at step {steps // 2} {words[1]} "
        f"(largest difference of a loss over {steps} steps; {time.perf_counter() - began:.0f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text", files=4, words=20_000)
        for deterministic in (False, True):
            compare(Path(folder), options.device, options.steps, deterministic)


if __name__ == "__main__":
    main()
