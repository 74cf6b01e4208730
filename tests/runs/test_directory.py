"""Run directories: names, freezing a configuration, changing it, and what their status says."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core.runs.event_file
from core.config.schema import TrainingConfig
from core.errors import UserError
from core.runs import (
    CheckpointInfo,
    EventWriter,
    Run,
    RunLock,
    boot_id,
    check_name,
    discard,
    explain_log,
    find_checkpoints,
    list_runs,
    next_run_name,
    prepare_run,
    prune,
    read_holder,
    status,
    verify,
)
from core.runs.checkpoints import checkpoint_path, held, write_manifest
from core.runs.events import EndEvent
from core.runs.launching import start_trainer
from tests.run_tools import new_run, run_event, step_event, tiny, write_text


@pytest.fixture
def dataset(tmp_path):
    return write_text(tmp_path / "text")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def fake_checkpoint(folder, step, loss=None, content=b"weights"):
    import hashlib

    path = checkpoint_path(folder, step)
    path.write_bytes(content)
    info = CheckpointInfo(
        step=step,
        path=path,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        train_loss=None,
        validation_loss=loss,
        bits_per_byte=None,
        time=time.time(),
        best=False,
    )
    write_manifest(info)
    return info


def test_names(root):
    assert next_run_name(root) == "run-001"
    (root / "run-001").mkdir(parents=True)
    assert next_run_name(root) == "run-002"
    for good in ("a", "shelf of books", "run-1.2_x", "Bücher"):
        check_name(good)
    for bad in ("", ".", "..", ".x", "-x", "a/b", "a\\b", "a\nb", "a\x1b[2J", "a\u202eb", "x" * 121, "a:b"):
        with pytest.raises(UserError, match="--run is"):
            check_name(bad)


def test_a_frozen_configuration_knows_its_dataset_from_anywhere(root, dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    config = tiny(dataset.relative_to(dataset.parent))
    run = prepare_run(root, "a", config)
    monkeypatch.chdir("/")
    assert run.config().data.dataset_dir == str(dataset)
    assert [found.name for found in list_runs(root)] == ["a"]
    monkeypatch.chdir(dataset.parent)
    assert prepare_run(root, "a", config, mode="resume").config() == run.config()


def test_what_may_not_change_is_listed_with_both_values_and_the_ways_out(root, dataset):
    run = prepare_run(root, "a", tiny(dataset))
    frozen = run.config()
    with pytest.raises(UserError) as caught:
        prepare_run(root, "a", tiny(dataset, n_head=1, block_size=32, learning_rate=1e-4))
    message = str(caught.value)
    assert "block_size is 16 in the run, 32 asked for" in message
    assert "n_head is [2, 2] in the run, [1, 1] asked for" in message
    assert "learning_rate" not in message
    assert "--run NAME" in message
    assert "--fresh" in message
    assert run.config() == frozen
    prepare_run(root, "a", tiny(dataset, learning_rate=1e-4))
    assert run.config().training.learning_rate == 1e-4


def test_fresh_moves_the_old_run_aside_and_deletes_nothing(root, dataset):
    run = prepare_run(root, "a", tiny(dataset))
    fake_checkpoint(run.path, 5)
    prepare_run(root, "a", tiny(dataset, block_size=32), mode="fresh")
    assert run.config().model.block_size == 32
    assert run.checkpoints() == []
    assert [info.step for info in Run(root / "a.old-1").checkpoints()] == [5]
    prepare_run(root, "a", tiny(dataset), mode="fresh")
    assert (root / "a.old-2").is_dir()


def test_modes_that_cannot_be(root, dataset):
    with pytest.raises(UserError, match="there is no run"):
        prepare_run(root, "a", tiny(dataset), mode="resume")
    with pytest.raises(UserError, match="no configuration"):
        prepare_run(root, "a", None)
    run = prepare_run(root, "a", tiny(dataset))
    with RunLock(run.lock_path):
        for mode in ("auto", "resume", "fresh"):
            with pytest.raises(UserError, match="already being trained by process"):
                prepare_run(root, "a", tiny(dataset), mode=mode)
        with pytest.raises(UserError, match="already being trained by process"):
            start_trainer(run)
    (root / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        prepare_run(root / "file", "a", tiny(dataset))


def test_a_checkpoint_without_a_whole_manifest_is_none(root, dataset):
    run = prepare_run(root, "a", tiny(dataset))
    fake_checkpoint(run.path, 5, 2.0)
    fake_checkpoint(run.path, 10, 1.0)
    checkpoint_path(run.path, 15).write_bytes(b"no manifest")
    (run.path / "checkpoint_step_20.json").write_text("{}")
    (run.path / "checkpoint_step_25.json").write_text("{")
    shutil.copy(run.path / "checkpoint_step_5.json", run.path / "checkpoint_step_30.json")
    found = run.checkpoints()
    assert [(info.step, info.best, verify(info)) for info in found] == [(5, False, ""), (10, True, "")]
    found[1].path.write_bytes(b"weight!")
    assert verify(run.checkpoints()[1]) == "its content has changed since it was saved"
    found[1].path.write_bytes(b"wei")
    assert "3 bytes instead of 7" in run.checkpoints()[1].problem
    assert [info.best for info in run.checkpoints()] == [True, False]
    found[1].path.unlink()
    assert run.checkpoints()[1].problem == "its file is missing"


@settings(deadline=None, max_examples=100)
@given(
    content=st.binary(max_size=80)
    | st.dictionaries(
        st.sampled_from(["step", "bytes", "sha256", "time", "train_loss", "validation_loss"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(7),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_manifest_upsets_a_reader(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoint_step_7.json").write_bytes(content)
    for info in find_checkpoints(folder):
        assert info.problem
        assert verify(info)
        assert not info.best


def test_what_is_kept(root, dataset):
    run = prepare_run(root, "a", tiny(dataset))
    losses = {5: 3.0, 10: 1.0, 15: 2.0, 20: float("nan"), 25: 1.5, 30: None, 35: 4.0, 40: 5.0}
    for step, loss in losses.items():
        fake_checkpoint(run.path, step, loss)
    (run.path / "checkpoint_step_99.pt").write_bytes(b"never finished")
    (run.path / ".checkpoint_step_99.pt.123.tmp").write_bytes(b"never finished")
    (run.path / "notes.txt").write_text("mine")
    policy = TrainingConfig(keep_last=2, keep_best=2, keep_every=15)
    gone = prune(run.path, policy)
    assert sorted(gone) == [5, 20]
    assert [info.step for info in run.checkpoints()] == [10, 15, 25, 30, 35, 40]
    assert (run.path / "notes.txt").exists()
    assert not list(run.path.glob("*99*")) + list(run.path.glob(".*99*"))
    prune(run.path, TrainingConfig(keep_last=1, keep_best=0))
    assert [info.step for info in run.checkpoints()] == [10, 40], "the best one always stays"


def test_a_checkpoint_that_is_being_loaded_stays(root, dataset):
    run = prepare_run(root, "a", tiny(dataset))
    for step in (5, 10, 15):
        fake_checkpoint(run.path, step)
    policy = TrainingConfig(keep_last=1)
    with held(checkpoint_path(run.path, 5)):
        assert prune(run.path, policy) == [10]
    assert [info.step for info in run.checkpoints()] == [5, 15]
    assert prune(run.path, policy) == [5]


def write_history(run, *, started=1.0, end=None, steps=3):
    writer = EventWriter(run.events_path)
    writer.write(run_event(started=started, max_iters=40))
    writer.state("training", 0)
    for step in range(1, steps + 1):
        writer.write(step_event(step, 1 / step))
    if end:
        writer.write(EndEvent(reason=end, step=steps, message="why"))
    writer.close()


@pytest.mark.parametrize(
    ("reason", "state"),
    [("finished", "finished"), ("stopped", "stopped"), ("interrupted", "stopped"), ("failed", "failed")],
)
def test_status_of_a_run_that_ended(root, dataset, reason, state):
    run = new_run(root, dataset)
    assert status(run).state == "new"
    write_history(run, end=reason)
    found = status(run)
    assert (found.state, found.step, found.max_iters, found.train_loss, found.message) == (
        state,
        3,
        40,
        1 / 3,
        "why",
    )
    assert found.pid is None
    assert found.tokens_per_second is None


def test_status_of_a_run_that_lives_and_of_one_that_died(root, dataset):
    run = new_run(root, dataset)
    write_history(run, end="stopped")
    with RunLock(run.lock_path):
        write_history(run, started=2.0, steps=5)
        found = status(run)
        assert (found.state, found.alive, found.step, found.pid) == ("training", True, 5, os.getpid())
        assert found.tokens_per_second == 1000.0
    found = status(run)
    assert (found.state, found.alive) == ("died", False)
    assert "killed" in found.message
    run.log_path.write_text("=== trainer started now ===\nTraceback (most recent call last):\nMemoryError\n")
    assert "out of memory" in status(run).message
    rebooted = dataclasses.replace(read_holder(run.lock_path), boot_id="before")
    run.lock_path.write_text(json.dumps(dataclasses.asdict(rebooted)))
    assert boot_id() != "before"
    assert "machine was restarted" in status(run).message


def test_only_a_run_without_a_step_is_ever_discarded(root, dataset):
    run = new_run(root, dataset)
    write_history(run, end="failed", steps=1)
    discard(run)
    assert run.exists
    run.events_path.unlink()
    fake_checkpoint(run.path, 5)
    discard(run)
    assert run.exists
    for info in run.checkpoints():
        info.path.unlink()
        info.manifest_path.unlink()
    with RunLock(run.lock_path):
        discard(run)
        assert run.exists
    discard(run)
    assert not run.path.exists()


def test_a_clock_set_back_makes_no_negative_age(root, dataset):
    run = new_run(root, dataset)
    writer = EventWriter(run.events_path, clock=lambda: time.time() + 1e6)
    writer.warning("from the future")
    assert status(run).age == 0.0


def test_status_reads_the_same_of_a_long_history_as_of_a_short_one(root, dataset, monkeypatch):
    run = new_run(root, dataset)
    write_history(run, steps=20_000)
    real, read = core.runs.event_file.parse, []
    monkeypatch.setattr(core.runs.event_file, "parse", lambda lines: read.append(len(lines)) or real(lines))
    assert status(run).step == 20_000
    assert sum(read) < 2000


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "killed"),
        ("ModuleNotFoundError: No module named 'tiktoken'", "package tiktoken is missing"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to", "ran out of memory"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'x'", "the trainer failed: KeyError: 'x'"),
        ("something odd", "something odd"),
    ],
)
def test_a_log_in_words(log, words):
    assert words in explain_log(log)


def test_the_floor_of_runs_needs_no_torch():
    code = (
        "import sys, core.runs, core.training.requests, core.training.process;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
