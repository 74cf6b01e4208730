"""Kill a trainer again and again at random moments and check that nothing is lost.

    python -m benchmarks.soak --kills 100 [--seed 1]

One run trains without interruption, a second with that many SIGKILLs: while it prepares, trains, evaluates,
samples or saves. After each kill the run must be shown as died, every event written before must still be
there, and some checkpoint must verify. In the end every loss, every evaluation and the bytes of the last
checkpoint must equal those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from core.config.schema import build
from core.errors import UserError
from core.runs import Follower, Run, is_alive, prepare_run, signal_trainer, start_trainer, status, verify

ENVIRONMENT = {"MAMBA_TUI_EVENT_SECONDS": "0"}


def write_text(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        words = (f"word{(i * i + number) % 23} and" for i in range(4000))
        (folder / f"book{number}.txt").write_text(" ".join(words))
    return folder


def new_run(root: Path, name: str, dataset: Path, steps: int) -> Run:
    config = build(
        {
            "n_embd": [32, 24, 32],
            "n_head": 2,
            "attention_type": ["mamba", "standard", "mamba2"],
            "block_size": 32,
            "batch_size": 4,
            "dropout": 0.1,
            "tokenizer": "char",
            "dataset_dir": str(dataset),
            "max_iters": steps,
            "eval_interval": 20,
            "eval_iters": 4,
            "checkpoint_interval": 7,
            "sample_tokens": 8,
            "device": "cpu",
            "threads": 1,
        }
    )
    return prepare_run(root, name, config)


def history(run: Run) -> Follower:
    follower = Follower(run.events_path)
    follower.poll()
    return follower


def outcome(run: Run) -> tuple[list[float], list[float], list[float], str]:
    folded = history(run).history
    steps, looks = folded.steps.column, folded.evaluations.column
    curve = [*steps("step"), *steps("loss")]
    return (
        curve,
        [*steps("tokens")],
        [*looks("step"), *looks("validation_loss")],
        run.checkpoints()[-1].sha256,
    )


def wait_for_end(run: Run) -> None:
    while is_alive(run):
        time.sleep(0.01)


def one_kill(run: Run, chance: random.Random) -> str:
    """Start the run and kill it at a random moment. Returns what it was doing."""
    start_trainer(run, environment=ENVIRONMENT)
    follower = history(run)
    if chance.random() < 0.1:
        time.sleep(chance.random() * 1.5)  # while it prepares
    else:
        goal = follower.history.run.first_step if follower.history.run else 0
        goal += chance.randint(1, 45)
        while follower.history.step < goal and is_alive(run):
            follower.poll()
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
    with contextlib.suppress(UserError):
        signal_trainer(run, signal.SIGKILL)
    wait_for_end(run)
    folded = history(run).history
    return folded.state.state if folded.end is None and folded.state else "ended before the kill"


def check(run: Run, before: bytes) -> None:
    """Assert what must hold after every kill."""
    assert run.events_path.read_bytes().startswith(before), "events from before the kill are gone"
    assert status(run).state == "died", status(run)
    checkpoints = run.checkpoints()
    assert not checkpoints or any(not verify(info) for info in checkpoints), "no checkpoint verifies"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset, steps = write_text(root / "text"), 25 * options.kills + 200
        whole, run = (new_run(root, name, dataset, steps) for name in ("whole", "killed"))
        began = time.monotonic()
        start_trainer(whole, environment=ENVIRONMENT)
        wait_for_end(whole)
        moments: collections.Counter[str] = collections.Counter()
        resumed = 0
        for _ in range(options.kills):
            data = run.events_path.read_bytes() if run.events_path.exists() else b""
            before = data[: data.rfind(b"\n") + 1]
            moments[one_kill(run, chance)] += 1
            check(run, before)
            resumed += 1
        start_trainer(run, environment=ENVIRONMENT)
        wait_for_end(run)
        same = outcome(run) == outcome(whole) and history(run).history.end.reason == "finished"
        print(f"killed while: {', '.join(f'{name} {count}' for name, count in moments.most_common())}")
        starts = sum(note.kind == "run" for note in history(run).history.notes)
        print(f"{steps} steps, {starts} starts, {time.monotonic() - began:.0f} s")
        print(f"{resumed}/{options.kills} resumed, curves {'identical' if same else 'DIFFER'}")
        return 0 if same and resumed == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
