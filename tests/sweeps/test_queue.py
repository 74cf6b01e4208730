"""Sweeps with real trainers: what is killed goes on, poor variants end early, one run waits for another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.runs import Run, is_alive, signal_trainer, status
from core.sweeps.axes import parse_axis, variants
from core.sweeps.plan import load_plan, make_plan
from core.sweeps.progress import Watcher
from core.sweeps.queue import ask_to_stop, is_worked_on
from tests.run_tools import EVERY_STEP, history, tiny, wait_for, write_text

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def started():
    """Starts programs in the background, and ends them and their trainers afterwards."""
    processes, roots = [], []

    def start(root, *arguments):
        roots.append(root)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | EVERY_STEP | {"PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
    for root in roots:
        for run in map(Run, root.iterdir()):
            if is_alive(run):
                signal_trainer(run, signal.SIGKILL)


def states(plan):
    return [one.state for one in Watcher(load_plan(plan.root, plan.tag)).look()]


def test_killed_variants_and_a_killed_queue_are_gone_on_with(tmp_path, dataset, started):
    root = tmp_path / "ck"
    base = tiny(dataset, max_iters=150, eval_interval=50, checkpoint_interval=5)
    plan = make_plan(root, "s", base, variants(base, [parse_axis("dropout=0,0.1,0.2")]), at_once=2)
    first = started(root, "core.sweeps.process", str(root), "s")
    one = plan.run(plan.variants[0])
    wait_for(lambda: one.checkpoints() or first.poll() is not None, "a checkpoint of the first variant")
    signal_trainer(one, signal.SIGKILL)
    wait_for(
        lambda: "s-1" in load_plan(root, "s").restarts or first.poll() is not None,
        "the queue to start the killed variant again",
    )
    assert is_worked_on(plan)
    first.kill()  # as a reboot would; the trainers that live go on by themselves
    first.wait()
    wait_for(lambda: not is_worked_on(plan), "the lock of the killed queue to be free")
    second = started(root, "mamba_tui", "sweep", "s", "--resume", "--checkpoints", str(root))
    said = second.communicate()[0].decode()
    assert second.returncode == 0, said
    assert states(plan) == ["finished"] * 3, said
    assert "s-3 (dropout=0.2) finished at step 150" in said
    assert any(event > 0 for event in history(one).history.steps.column("step"))
    shown = started(root, "mamba_tui", "sweep", "s", "--json", "--checkpoints", str(root))
    found = json.loads(shown.communicate()[0])
    losses = [variant["bits_per_byte"] for variant in found["variants"]]
    assert losses == sorted(losses)
    assert found["effects"][0]["key"] == "dropout"


def test_poor_variants_end_early_and_stay_ended(tmp_path, dataset, started):
    root = tmp_path / "ck"
    base = tiny(dataset, max_iters=200, eval_interval=10, warmup_iters=0, dropout=0.0)
    rates = parse_axis("learning_rate=5e-3,4e-3,6e-3,1e-7")
    plan = make_plan(root, "s", base, variants(base, [rates]), at_once=3, prune=True)
    queue = started(root, "core.sweeps.process", str(root), "s")
    said = queue.communicate()[0].decode()
    assert queue.returncode == 0, said
    plan = load_plan(root, "s")
    assert "s-4" in plan.pruned, said
    assert states(plan)[3] == "pruned"
    assert status(plan.run(plan.variants[3])).step < 200
    again = started(root, "core.sweeps.process", str(root), "s")
    assert again.wait() == 0
    assert states(plan)[3] == "pruned"


def test_a_sweep_is_stopped_and_a_variant_stopped_by_hand_is_left_alone(tmp_path, dataset, started):
    root = tmp_path / "ck"
    base = tiny(dataset, max_iters=1_000_000, eval_interval=1_000_000, sample_tokens=0)
    plan = make_plan(root, "s", base, variants(base, [parse_axis("dropout=0,0.1")]), at_once=1)
    queue = started(root, "core.sweeps.process", str(root), "s")
    one, two = (plan.run(variant) for variant in plan.variants)
    wait_for(
        lambda: history(one).history.step > 0 or queue.poll() is not None, "the first variant's first step"
    )
    stop = started(root, "mamba_tui", "stop", "s-1", "--checkpoints", str(root))
    assert stop.wait() == 0
    wait_for(
        lambda: history(two).history.step > 0 or queue.poll() is not None, "the second variant's first step"
    )
    assert states(plan) == ["stopped", "training"]
    assert ask_to_stop(plan) == 1
    assert queue.wait() == 130
    assert states(plan) == ["stopped", "interrupted"]
    assert two.checkpoints()


def test_a_run_waits_for_another(tmp_path, dataset, started):
    root = tmp_path / "ck"
    text = ["--checkpoints", str(root), "--config", str(tmp_path / "c.json")]
    from core.config.files import save_file

    save_file(
        tiny(dataset, max_iters=1_000_000, eval_interval=1_000_000, sample_tokens=0), tmp_path / "c.json"
    )
    assert started(root, "mamba_tui", "train", *text, "--run", "a", "--detach").wait() == 0
    later = started(
        root, "mamba_tui", "train", *text, "--run", "b", "--max-iters", "5", "--after", "a", "--detach"
    )
    assert later.wait() == 0, later.communicate()
    plan = load_plan(root, "b")
    assert is_worked_on(plan)
    assert states(plan) == ["waiting"]
    second = started(root, "mamba_tui", "sweep", "b", "--resume", "--checkpoints", str(root))
    assert second.wait() == 2
    assert b"another process" in second.communicate()[0]
    signal_trainer(Run(root / "a"), signal.SIGTERM)
    wait_for(lambda: states(plan) == ["finished"], "the second run's end")
    wait_for(lambda: not is_worked_on(plan), "the queue's end")
    refused = started(root, "mamba_tui", "train", *text, "--run", "c", "--after", "none")
    assert refused.wait() == 2
    assert not (root / "c").exists()
