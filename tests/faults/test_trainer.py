"""Real trainers killed, commanded, signaled and broken. Each test waits for a condition, never for a time."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from core.errors import UserError
from core.runs import (
    EventReader,
    Run,
    is_alive,
    prepare_run,
    read_holder,
    send_command,
    signal_trainer,
    start_trainer,
    status,
    verify,
    wait_for_command,
)
from tests.run_tools import (
    EVERY_STEP,
    ROOT,
    Holds,
    curve,
    ended,
    evaluations,
    history,
    new_run,
    train_here,
    wait_for,
    write_text,
)

pytestmark = pytest.mark.faults

LONG = {"max_iters": 1_000_000, "eval_interval": 1_000_000, "sample_tokens": 0}
SMALL = {"max_iters": 120, "eval_interval": 20, "checkpoint_interval": 7, "eval_iters": 4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def started():
    """Starts trainers and ends the ones that a failing test leaves behind."""
    runs: list[Run] = []

    def start(run: Run, environment: dict[str, str] = EVERY_STEP) -> int:
        runs.append(run)
        return start_trainer(run, environment=environment)

    yield start
    for run in runs:
        with contextlib.suppress(UserError):
            signal_trainer(run, signal.SIGKILL)
        wait_for(lambda run=run: ended(run), "the trainer's end")


def steps_of(run: Run) -> int:
    return history(run).history.step


def wait_for_step(run: Run, step: int) -> None:
    wait_for(lambda: steps_of(run) >= step or ended(run), f"step {step}")
    assert is_alive(run), status(run).message


def wait_for_end(run: Run) -> None:
    wait_for(lambda: ended(run), "the end of the run")


def kill(run: Run) -> None:
    signal_trainer(run, signal.SIGKILL)
    wait_for_end(run)


def stop_for_a_moment(run: Run) -> None:
    """Stop the trainer, which is a child of ours, until it is sent SIGCONT."""
    pid = signal_trainer(run, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def complete_lines(run: Run) -> bytes:
    data = run.events_path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def test_killed_at_any_moment_the_final_curve_is_the_uninterrupted_one(tmp_path, dataset, started):
    whole = new_run(tmp_path, dataset, "whole", **SMALL)
    assert train_here(whole) == 0
    run = new_run(tmp_path, dataset, **SMALL)
    chance = random.Random(20)

    lines = b""
    moments = ["step", "saving", "evaluating", "saving"]
    for number, moment in enumerate(moments):
        when = {"step": steps_of(run) + chance.randint(1, 12), "saving": chance.randint(1, 2)}
        holds = Holds(tmp_path / f"hold{number}", f"{moment} {when.get(moment, 1)}")
        started(run, holds.environment)
        holds.wait(run)
        assert moment != "saving" or list(run.path.glob(".checkpoint_step_*.tmp"))
        kill(run)
        assert complete_lines(run).startswith(lines)
        assert status(run).state == "died"
        assert status(run).pid is None
        if number == 1:  # what a dying disk may leave: a line that is no event, and half a line
            with open(run.events_path, "ab") as file:
                file.write(b"\x00\x00\n" + b'{"kind":"step","st')
        lines = complete_lines(run)
    started(run)
    wait_for_end(run)
    assert curve(run) == curve(whole)
    assert evaluations(run) == evaluations(whole)
    assert [verify(info) for info in run.checkpoints()] == [""] * len(run.checkpoints())
    assert run.checkpoints()[-1].sha256 == whole.checkpoints()[-1].sha256
    assert history(run).reader.skipped == 1


def test_commands_signals_and_a_second_trainer(tmp_path, dataset, started):
    run = new_run(tmp_path, dataset, **LONG)
    pid = started(run)
    assert read_holder(run.lock_path).pid == pid
    wait_for_step(run, 2)

    # A second trainer is refused with the first's pid and since when.
    code = subprocess.run(
        [sys.executable, "-P", "-m", "core.training.process", str(run.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert code.returncode == 2
    assert f"already being trained by process {pid} since " in code.stderr
    assert "Traceback" not in code.stderr
    with pytest.raises(UserError, match=f"already being trained by process {pid}"):
        prepare_run(tmp_path, "run", None)

    # Paused: no step, but commands are heard.
    assert wait_for_command(run, send_command(run, "pause")).accepted
    wait_for(lambda: status(run).state == "paused", "the pause")
    paused_at = steps_of(run)
    assert not wait_for_command(run, send_command(run, "pause")).accepted
    assert wait_for_command(run, send_command(run, "save")).accepted
    wait_for(lambda: [info.step for info in run.checkpoints()] == [paused_at], "the checkpoint")
    assert wait_for_command(run, send_command(run, "evaluate")).accepted
    wait_for(lambda: evaluations(run), "the evaluation")
    assert evaluations(run)[0][0] == paused_at
    assert steps_of(run) == paused_at
    assert wait_for_command(run, send_command(run, "resume")).accepted
    wait_for_step(run, paused_at + 3)

    # Two consoles at once: both commands are answered, each once. It hears none before both are sent.
    stop_for_a_moment(run)
    sent: list[str] = []
    consoles = [
        threading.Thread(target=lambda name=name: sent.append(send_command(run, name)))
        for name in ("stop", "pause")
    ]
    for console in consoles:
        console.start()
    for console in consoles:
        console.join()
    assert len(sent) == 2
    signal_trainer(run, signal.SIGCONT)
    wait_for_end(run)
    answers = [event for event in EventReader(run.events_path).poll() if event.kind == "command"]
    assert sorted(event.id for event in answers if event.id in sent) == sorted(sent)
    assert len({event.id for event in answers}) == len(answers)
    folded = history(run).history
    assert folded.end.reason == "stopped"
    assert folded.end.checkpoint == f"checkpoint_step_{folded.step}.pt"
    assert run.checkpoints()[-1].step == folded.step
    with pytest.raises(UserError, match="is not running"):
        send_command(run, "pause")

    # A signal saves and ends; resumed, the curve goes on without a gap.
    started(run)
    wait_for_step(run, folded.step + 2)
    signal_trainer(run, signal.SIGINT)
    wait_for_end(run)
    again = history(run).history
    assert again.end.reason == "interrupted"
    assert again.run.resumed_from == folded.step
    assert run.checkpoints()[-1].step == again.step
    assert [step for step, _ in curve(run)] == list(range(1, again.step + 1))


def test_a_second_signal_ends_at_once_and_loses_only_what_was_not_saved(tmp_path, dataset, started):
    run = new_run(tmp_path, dataset, **LONG)
    started(run)
    wait_for_step(run, 2)
    wait_for_command(run, send_command(run, "save"))
    wait_for(run.checkpoints, "the checkpoint")
    kept = run.checkpoints()[-1].step
    # Stopped for a moment, so that both signals are there before it looks.
    stop_for_a_moment(run)
    signal_trainer(run, signal.SIGTERM)
    signal_trainer(run, signal.SIGINT)
    signal_trainer(run, signal.SIGCONT)
    wait_for_end(run)
    folded = history(run).history
    assert folded.end.reason == "interrupted"
    assert "without saving" in folded.end.message
    assert folded.end.checkpoint == f"checkpoint_step_{kept}.pt"
    assert [info.step for info in run.checkpoints()] == [kept]


def fake_package(folder, name: str, code: str) -> dict[str, str]:
    """An environment in which importing `name` runs `code`."""
    (folder / f"{name}.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_a_trainer_that_fails_before_its_first_event_is_explained(tmp_path, dataset):
    broken = tmp_path / "broken"
    broken.mkdir()
    run = new_run(tmp_path, dataset)
    environment = fake_package(broken, "secrets", "raise ImportError('libblas.so.3 is missing')")
    with pytest.raises(UserError, match=r"could not start: the trainer failed: ImportError: libblas\.so\.3"):
        start_trainer(run, environment=environment)
    assert not run.events_path.exists()
    found = status(run)
    assert found.state == "failed"
    assert "libblas.so.3 is missing" in found.message
    assert "Traceback" in found.log_tail

    (broken / "secrets.py").unlink()
    environment = fake_package(broken, "torch", "raise ImportError('libcudart.so.13 is missing')")
    start_trainer(run, environment=environment)
    wait_for_end(run)
    found = status(run)
    assert (found.state, history(run).history.end.reason) == ("failed", "failed")
    assert "torch cannot be used here: libcudart.so.13 is missing" in found.message

    environment = fake_package(broken, "torch", "import os; os.abort()")
    start_trainer(run, environment=environment)
    wait_for_end(run)
    assert status(run).state == "died"

    run.config_path.write_text("[model]\nn_embd = 'wide'\n")
    with pytest.raises(UserError, match=r"n_embd is .*wide.*; accepted: a whole number"):
        start_trainer(run)
    shutil.rmtree(run.path)
    with pytest.raises(UserError, match="cannot be written"):
        start_trainer(run)
