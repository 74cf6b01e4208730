"""A run that the program of 2026-11 wrote before files, words and events were renamed still works.

`old_run/run-old` was stopped at its 16th and last step (three layers, each of another kind). The same
program then resumed it to step 24; what it computed stands in `resumed_to_24.json`. A change of names or
formats may not change a digit that a person can see.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.checkpoint import load
from core.config.changes import replace
from core.runs import Run, list_runs, prepare_run, status
from mamba_tui.cli.main import main
from tests.run_tools import curve, evaluations, history, train_here

STORED = Path(__file__).parent / "old_run"
EXPECTED = json.loads((STORED / "resumed_to_24.json").read_text())


@pytest.fixture
def old_run(tmp_path) -> Run:
    """A copy of the stored run whose configuration names the stored text."""
    text = shutil.copytree(STORED / "text", tmp_path / "text")
    folder = shutil.copytree(STORED / "run-old", tmp_path / "checkpoints" / "run-old")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('"DATASET"', json.dumps(str(text))))
    return Run(folder)


def test_it_is_listed_and_its_history_is_read(old_run):
    assert [run.name for run in list_runs(old_run.path.parent)] == ["run-old"]
    found = status(old_run)
    assert (found.state, found.step, found.max_iters) == ("finished", 16, 16)
    assert found.validation_loss == 5.319303035736084
    follower = history(old_run)
    assert follower.reader.skipped == 0
    assert follower.history.step == 16
    assert follower.history.run.parameters == 15_911
    assert evaluations(old_run)[-1] == (16, 5.345350980758667, 5.319303035736084)
    assert [info.problem for info in old_run.checkpoints()] == [""]


def test_the_commands_know_it(old_run, capfd):
    folder = str(old_run.path.parent)
    assert main(["runs", "--checkpoints", folder]) == 0
    assert "16/16" in capfd.readouterr().out
    greedy = ["--prompt", "the rain", "--temperature", "0", "--max-new-tokens", "12", "--device", "cpu"]
    assert main(["generate", "--checkpoints", folder, "--run", "run-old", *greedy]) == 0
    assert capfd.readouterr().out == "the rain ad ad ad ad\n"


def test_it_resumes_with_the_numbers_of_the_program_that_wrote_it(old_run):
    config = replace(old_run.config(), max_iters=24)
    run = prepare_run(old_run.path.parent, "run-old", config, mode="resume")
    assert train_here(run) == 0
    assert history(run).history.run.resumed_from == 16
    losses = [(step, loss) for step, loss in curve(run, aggregated=True) if step > 16]
    assert [step for step, _ in losses] == list(range(17, 25))
    for (step, loss), (_, expected) in zip(losses, EXPECTED["losses"]):
        assert loss == pytest.approx(expected, rel=1e-6), f"step {step}"
    assert evaluations(run)[-1][0] == 24  # its losses are of more text than the old program read
    assert_same_weights(run)


def assert_same_weights(run: Run) -> None:
    """The final weights are those of the old program, whatever they are called now."""
    tensors = [tensor.double() for tensor in load(run.checkpoints()[-1].path)["model"].values()]
    found = sorted((list(one.shape), one.sum().item(), one.abs().sum().item()) for one in tensors)
    expected = sorted((one["shape"], one["sum"], one["absolute_sum"]) for one in EXPECTED["weights"])
    assert [shape for shape, *_ in found] == [shape for shape, *_ in expected]
    for (shape, total, absolute), (_, expected_total, expected_absolute) in zip(found, expected):
        assert absolute == pytest.approx(expected_absolute, rel=1e-5), shape
        assert total == pytest.approx(expected_total, abs=1e-5 * expected_absolute), shape
