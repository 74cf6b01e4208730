"""Disks that are full or can't be written to, with real trainers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.runs import prepare_run, signal_trainer, start_trainer, status, verify
from tests.run_tools import (
    ROOT,
    Holds,
    curve,
    ended,
    history,
    new_run,
    tiny,
    train_here,
    wait_for,
    warnings,
    write_text,
)

pytestmark = pytest.mark.faults

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
# A limit would cut off Python's compiled modules, too, which later processes trust.
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux to limit another process")
def test_a_disk_full_for_a_while_costs_no_event_and_no_step(tmp_path):
    dataset = write_text(tmp_path / "text")
    settings = {"max_iters": 200, "eval_interval": 200, "checkpoint_interval": 5, "sample_tokens": 0}
    whole = new_run(tmp_path, dataset, "whole", **settings)
    assert train_here(whole) == 0
    run = new_run(tmp_path, dataset, **settings)
    holds = Holds(tmp_path / "hold", "step 12", "step 40")
    pid = start_trainer(run, environment=holds.environment | NO_BYTECODE)
    try:
        holds.wait(run)
        wait_for(lambda: run.checkpoints() and run.checkpoints()[-1].step == 10, "the checkpoint of step 10")
        # No file of the trainer may grow beyond what the log of events has now.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (run.events_path.stat().st_size, UNLIMITED[1]))
        holds.let_go()
        holds.wait(run, 1)
        log = run.log_path.read_bytes()
        assert b"could not be saved" in log
        assert b"events cannot be written" in log
        assert [(info.step, verify(info)) for info in run.checkpoints()] == [(5, ""), (10, "")]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, UNLIMITED)
        holds.let_go(1)
        wait_for(lambda: ended(run), "the end of the run")
    finally:
        with contextlib.suppress(UserError):
            signal_trainer(run, signal.SIGKILL)
    folded = history(run)
    assert folded.history.end.reason == "finished", status(run).message
    assert folded.reader.skipped == 0
    assert any("could not be saved (File too large)" in message for message in warnings(folded.history))
    assert curve(run) == curve(whole)
    assert run.checkpoints()[-1].sha256 == whole.checkpoints()[-1].sha256


def test_a_disk_full_while_the_text_is_encoded_is_one_sentence(tmp_path):
    dataset = write_text(tmp_path / "text", words=8000)
    run = new_run(tmp_path, dataset)
    command = [sys.executable, "-P", "-m", "core.training.process", str(run.path)]
    limit = 30_000  # enough for the events, too little for the tokens

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, UNLIMITED[1]))

    environment = {**os.environ, "PYTHONPATH": str(ROOT), **NO_BYTECODE}
    done = subprocess.run(
        command, env=environment, preexec_fn=small_disk, capture_output=True, text=True, check=False
    )
    folded = history(run).history
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert folded.end.reason == "failed"
    assert "there is no room left for the token cache" in folded.error.message
    # With room again the same run simply begins.
    assert train_here(run) == 0


def without_privilege() -> None:
    """Make the process that is about to start obey file modes even if root runs the tests."""
    if os.geteuid() == 0:
        library = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if library.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to give up root's privilege")
def test_a_folder_that_may_not_be_written_to_is_one_sentence(tmp_path):
    run = new_run(tmp_path, write_text(tmp_path / "text"))
    run.path.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "core.training.process", str(run.path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=without_privilege,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        run.path.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(run.path) in done.stderr
    assert "Permission denied" in done.stderr


def test_a_root_where_no_run_can_be_made_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be made .*--checkpoints"):
        prepare_run(Path("/proc/mamba-tui"), "run", tiny(tmp_path))
