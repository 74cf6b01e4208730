"""How much time writing the history takes in training, and how long it takes to open a long one.

    python -m benchmarks.events [--preset book] [--steps 60]

Within one run, bare training steps alternate with the trainer's full loop (events, commands, requests to
save), so both see the same machine.
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
from core.runs import EventWriter, Follower, RunLock, StepMeter, prepare_run, preview, read_tail, status
from core.runs.events import StepEvent
from core.runs.table import ROWS_KEPT
from core.system.processes import calm_threads
from core.training.requests import Requests


def in_training(root: Path, name: str, steps: int) -> None:
    from core.training.build import build_parts
    from core.training.trainer import Trainer

    write_sample(root / "text")
    config = replace(preset(name), dataset_dir=str(root / "text"), eval_interval=1_000_000_000)
    run = prepare_run(root, "run", config)
    with RunLock(run.lock_path):
        writer = EventWriter(run.events_path)
        requests = Requests(run, writer)
        requests.ready()
        parts = build_parts(run, run.config(), None, lambda text, share: None)
        trainer = Trainer(run, run.config(), parts, writer, requests)
        trainer._first_step()
        bare, full, spent = [], [], []
        inner = parts.training_step.run

        def timed(step: int) -> None:
            began = time.perf_counter()
            inner(step)
            times.append(time.perf_counter() - began)

        parts.training_step.run = timed  # type: ignore[method-assign]
        for number in range(2 * steps):
            times: list[float] = []
            began = time.perf_counter()
            if number % 2:
                trainer._listen()
                trainer._advance()
                full.append(time.perf_counter() - began)
                spent.append(full[-1] - times[0])
            else:
                timed(trainer.step + 1)
                trainer.step += 1
                parts.training_step.read(wait=True)
                bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        trainer._save("")
        stopped = time.perf_counter() - began
        trainer.saver.wait()
        beside = time.perf_counter() - began - stopped
        size = trainer.run.checkpoints()[-1].bytes / 1e6
    # Other programs only ever add time, so the fastest quarter is closest to ours.
    with_events, without = (statistics.quantiles(times, n=4)[0] for times in (full, bare))
    share = sum(spent) / sum(full)
    print(f"{name} preset on cpu, {steps} steps each, alternating in one run:")
    print(f"  step without history and lock      {without * 1e3:8.2f} ms (lower quartile)")
    print(f"  step with history and lock         {with_events * 1e3:8.2f} ms (lower quartile)")
    each = statistics.median(spent) * 1e6
    print(f"  spent on them, timed directly      {each:8.1f} us a step = {share:.3%}")
    print(f"  a checkpoint of {size:.0f} MB stops training for {stopped * 1e3:.1f} ms,", end=" ")
    print(f"then is written in the background in {beside * 1e3:.0f} ms")


def bare_cost(root: Path, steps: int = 20_000) -> None:
    run = prepare_run(root, "bare", replace(preset("book"), dataset_dir=str(root)))
    with RunLock(run.lock_path):
        writer = EventWriter(run.events_path)
        requests = Requests(run, writer)
        requests.ready()
        now = [0.0]
        meter = StepMeter(writer, 4096, clock=lambda: now[0])
        began = time.perf_counter()
        for step in range(1, steps + 1):
            now[0] += 0.001  # as if training took 1,000 steps a second
            requests.listen(step)
            meter.add(step=step, loss=2.0, gradient_norm=1.0, learning_rate=1e-3, waited=0.0, epoch=0.5)
            meter.flush_if_due()
        each = (time.perf_counter() - began) / steps
    print(f"at 1,000 steps a second: {each * 1e6:.1f} us a step = {each * 1e3:.2%} of the time")


def long_history(root: Path, events: int = 1_000_000) -> None:
    run = prepare_run(root, "long", replace(preset("book"), dataset_dir=str(root)))
    writer = EventWriter(run.events_path)
    began = time.perf_counter()
    for step in range(1, events + 1):
        writer.write(
            StepEvent(
                step=step,
                steps=1,
                loss=5.0 / (1 + step / 1000) + 0.001 * (step % 7),
                loss_min=1.0,
                loss_max=9.0,
                learning_rate=1e-3,
                gradient_norm=0.7312371,
                tokens_per_second=12345.6,
                tokens=step * 4096,
                data_wait=0.01,
                device_memory=None,
                epoch=round(step / 1000, 4),
            )
        )
    writer.close()
    each = (time.perf_counter() - began) / events * 1e6
    size = run.events_path.stat().st_size / 1e6
    print(f"a history of {events:,} events, {size:.0f} MB, {each:.1f} us an event to write:")
    for what, function in (
        ("status (a line of `mamba-tui runs`)", lambda: status(run)),
        ("the newest events", lambda: read_tail(run.events_path)),
        ("the whole curve, sampled (first paint)", lambda: preview(run.events_path)),
    ):
        began = time.perf_counter()
        function()
        print(f"  {what:<40} {(time.perf_counter() - began) * 1e3:8.1f} ms")
    follower = Follower(run.events_path)
    began, pieces = time.perf_counter(), []
    while True:
        piece = time.perf_counter()
        if not follower.poll(limit=2000):
            break
        pieces.append(time.perf_counter() - piece)
    print(f"  {'every event, in pieces':<40} {(time.perf_counter() - began) * 1e3:8.1f} ms", end="")
    print(f" (longest piece {max(pieces) * 1e3:.1f} ms)")
    assert follower.history.step == events
    assert follower.history.steps.count <= ROWS_KEPT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="book")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    calm_threads(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        in_training(root, options.preset, options.steps)
        bare_cost(root)
        long_history(root)


if __name__ == "__main__":
    main()
