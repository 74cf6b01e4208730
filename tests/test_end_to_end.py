"""The whole path as a user goes it: commands in a terminal, real text, real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.data.corpus import prepare
from core.data.tokenizer.tokenizer import Tokenizer
from core.runs import EventReader, Run
from tests.run_tools import wait_for

ROOT = Path(__file__).parent.parent
SMALL = [
    "--device", "cpu", "--set", "tokenizer=char", "--set", "n_embd=[64,48,64]", "--set", "n_head=4",
    "--set", "attention_type=[mamba,standard,mamba2]", "--set", "block_size=64", "--set", "batch_size=8",
    "--set", "learning_rate=4e-3", "--set", "warmup_iters=10", "--set", "eval_iters=4",
    "--set", "sample_tokens=20",
]  # fmt: skip


def command(*arguments):
    return [sys.executable, "-m", "mamba_tui.cli.main", *arguments]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def mamba_tui(folder, *arguments, stdin=""):
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
    )


def steps(run):
    events = EventReader(run.events_path).poll()
    return {event.step: event.loss for event in events if event.kind == "step"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A new user's first command: no text, no configuration, no run."""
    folder = tmp_path_factory.mktemp("new-user")
    done = mamba_tui(folder, "launch", "--no-ui", *SMALL, "--max-iters", "90", "--set", "eval_interval=45")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_a_first_run_writes_the_sample_says_so_and_learns(trained):
    folder, done = trained
    assert "sample was written there" in done.stdout
    assert (folder / "current_configuration.json").exists()
    run = Run(folder / "checkpoints" / "run-001")
    best = min(info.validation_loss for info in run.checkpoints())
    corpus = prepare(
        run.config().data, run.config().training.seed, tokenizer=Tokenizer.load(run.tokenizer_path)
    )
    counts = np.bincount(corpus.validation.read(0, len(corpus.validation)))
    shares = counts[counts > 0] / counts.sum()
    assert best < -(shares * np.log(shares)).sum() - 0.3
    for words in ("validation", "bits/byte", "sample at step 45", "checkpoint_step_90.pt", "Done"):
        assert words in done.stdout


def test_the_checkpoint_writes_the_same_for_the_same_seed(trained):
    folder, _ = trained
    arguments = ["generate", "--prompt", "The ", "--max-new-tokens", "40", "--seed", "5"]
    first, again = mamba_tui(folder, *arguments), mamba_tui(folder, *arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The ")
    assert len(first.stdout) > 20
    assert first.stdout == again.stdout


def test_standard_input_as_a_whole_is_the_prompt(trained):
    folder, _ = trained
    done = mamba_tui(folder, "generate", "--max-new-tokens", "8", "--seed", "1", stdin="The \nof \n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The \nof ")
    assert done.stderr.count("tokens/s") == 1


def test_bad_text_and_bad_checkpoints_are_one_sentence_and_leave_nothing(trained):
    folder, _ = trained
    (folder / "binary").mkdir()
    (folder / "binary" / "a.txt").write_bytes(bytes(range(256)) * 40)
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    done = mamba_tui(folder, "train", "--dataset", "binary", *SMALL)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a.txt" in done.stderr
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
    (folder / "other.pt").write_bytes(b"no checkpoint")
    done = mamba_tui(folder, "generate", "--checkpoint", "other.pt", "--prompt", "x")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "other.pt" in done.stderr


def interrupted(folder, *arguments, steps_first):
    """Train until so many steps are taken, and press Ctrl+C; the run's steps."""
    run = Run(folder / "checkpoints" / arguments[1])
    with subprocess.Popen(
        command("train", *arguments),
        cwd=folder,
        env={**environment(), "MAMBA_TUI_EVENT_SECONDS": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: len(steps(run)) >= steps_first or process.poll() is not None, f"{steps_first} steps")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    taken = steps(run)
    assert run.checkpoints()[-1].step == len(taken) == max(taken) >= steps_first
    return taken


def test_ctrl_c_saves_and_the_resumed_losses_are_the_uninterrupted_ones(trained):
    folder, _ = trained
    # More steps than anybody waits for: however quick the machine is, it is still training.
    options = [*SMALL, "--max-iters", "100000", "--set", "eval_interval=100000", "--dataset", "dataset"]
    cut = interrupted(folder, "--run", "cut", *options, steps_first=3)
    resumed = interrupted(folder, "--run", "cut", *options, "--resume", steps_first=len(cut) + 3)
    whole = interrupted(folder, "--run", "whole", *options, steps_first=len(resumed))
    assert [whole[step] for step in resumed] == list(resumed.values())


def test_a_detached_run_takes_commands_and_is_listed(trained):
    folder, _ = trained
    options = [*SMALL, "--max-iters", "100000", "--set", "eval_interval=100000", "--dataset", "dataset"]
    done = mamba_tui(folder, "launch", "--detach", "--run", "away", *options)
    assert done.returncode == 0, done.stderr
    assert "mamba-tui attach away" in done.stdout
    run = Run(folder / "checkpoints" / "away")
    wait_for(lambda: steps(run), "the first step")
    for name, words in (
        ("pause", "is paused at step"),
        ("resume", "continues"),
        ("save", "saved checkpoint_step_"),
    ):
        done = mamba_tui(folder, name, "away")
        assert (done.returncode, words in done.stdout) == (0, True), done.stdout + done.stderr
    assert " training " in mamba_tui(folder, "runs").stdout
    done = mamba_tui(folder, "stop", "away")
    assert (done.returncode, "saved checkpoint_step_" in done.stdout) == (0, True), done.stdout + done.stderr
    assert " stopped " in mamba_tui(folder, "runs").stdout
    refused = mamba_tui(folder, "stop", "away")
    assert (refused.returncode, "not running" in refused.stderr) == (2, True)
    assert "started on cpu" in mamba_tui(folder, "logs", "away").stdout
