"""How much time measuring the layers at every evaluation takes, as a share of the training time.

    python -m benchmarks.layer_watch [--preset book] [--turns 5]

In turns within one run: some training steps, then what is done for one evaluation (keeping the weights before
a step, one pass over four rows, norms, one event).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from core.config.changes import replace
from core.config.files import preset
from core.data.sample_corpus import write_sample
from core.runs import EventWriter, RunLock, prepare_run
from core.system.processes import calm_threads

STEPS_A_TURN = 3


def measure(root: Path, name: str, turns: int) -> None:
    """Print a step's time, that of the layers of one evaluation, and their share between evaluations."""
    from core.training.build import build_parts
    from core.training.layer_watch import LayerWatch

    write_sample(root / "text")
    config = replace(preset(name), dataset_dir=str(root / "text"))
    run = prepare_run(root, "run", config)
    with RunLock(run.lock_path):
        parts = build_parts(run, run.config(), None, lambda text, share: None)
        watch = LayerWatch(parts, run.config(), EventWriter(run.events_path))
        every = run.config().training.eval_interval
        step, steps, looks = 0, [], []

        def train() -> None:
            nonlocal step
            step += 1
            parts.training_step.run(step)
            parts.training_step.read(wait=True)

        train()
        watch.report(step)
        for _ in range(turns):
            for _ in range(STEPS_A_TURN):
                began = time.perf_counter()
                train()
                steps.append(time.perf_counter() - began)
            began = time.perf_counter()
            watch.before_step(every, every)
            watch.report(every)
            looks.append(time.perf_counter() - began)
    one, look = statistics.median(steps), statistics.median(looks)
    print(f"preset {name} on {parts.device_name}, {turns} turns")
    print(f"a step {one * 1e3:.1f} ms; the layers of one evaluation {look * 1e3:.1f} ms")
    print(f"with an evaluation every {every:,} steps: {look / (one * every):.3%} of the training time")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="book")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    calm_threads(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.preset, arguments.turns)


if __name__ == "__main__":
    main()
