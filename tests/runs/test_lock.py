"""Alive means locked: by this very process, on this boot, on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

import core.runs.lock as lock_module
from core.errors import UserError
from core.runs import RunLock, boot_id, read_holder
from core.runs.lock import is_locked, process_start, signal_holder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


def test_a_lock_is_held_for_its_block_only(path):
    assert not is_locked(path)
    with RunLock(path):
        assert is_locked(path)
        holder = read_holder(path)
        assert (holder.pid, holder.boot_id, holder.here) == (os.getpid(), boot_id(), True)
    assert not is_locked(path)


def test_a_second_holder_is_refused_with_the_first_one_s_pid_and_since_when(path, monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.1)
    with RunLock(path):
        with pytest.raises(
            UserError, match=rf"already being trained by process {os.getpid()} since \d{{4}}-"
        ):
            RunLock(path).__enter__()
        assert is_locked(path)


def test_asking_does_not_get_in_the_way(path):
    for _ in range(20):
        assert not is_locked(path)
        with RunLock(path):
            assert is_locked(path)


def test_a_forked_child_does_not_keep_a_dead_run_alive(path):
    lock = RunLock(path)
    lock.__enter__()
    (told, tell), (wait, release) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.write(tell, b"1")
        os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"1"
        assert is_locked(path)
        os.close(lock._descriptor)  # what a death does: nothing is unlocked, only closed
        assert not is_locked(path)
    finally:
        os.close(release)
        os.waitpid(child, 0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"pid": "x"}', b"\xff" * 100, b"1" * 5000])
def test_a_lock_file_that_makes_no_sense_is_nobody_s(path, content):
    path.write_bytes(content)
    assert read_holder(path) is None
    assert not is_locked(path)
    with RunLock(path):
        assert read_holder(path).pid == os.getpid()


def without_locks(monkeypatch):
    """A file system that has no locks."""

    class NoLocks:
        LOCK_EX = LOCK_SH = LOCK_NB = LOCK_UN = 0

        @staticmethod
        def flock(descriptor, how):
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr("core.system.locks.fcntl", NoLocks)


def test_where_there_are_no_locks_the_process_itself_is_looked_for(path, monkeypatch):
    without_locks(monkeypatch)
    with RunLock(path):
        assert read_holder(path).method == "heartbeat"
        assert is_locked(path)
        with pytest.raises(UserError, match="already being trained"):
            RunLock(path).__enter__()
    assert not is_locked(path)
    with RunLock(path):
        assert is_locked(path)


@pytest.mark.parametrize(
    "changes",
    [{"boot_id": "another boot"}, {"process_start": "1"}, {"pid": 2**22 + 1}],
    ids=["rebooted", "pid reused", "no such process"],
)
def test_without_locks_a_stale_holder_is_seen_through(path, monkeypatch, changes):
    without_locks(monkeypatch)
    with RunLock(path):
        stale = dataclasses.replace(read_holder(path), **changes)
    path.write_text(json.dumps(dataclasses.asdict(stale)))
    assert not is_locked(path)
    with RunLock(path):
        assert is_locked(path)


def test_on_another_machine_the_heartbeat_counts(path, monkeypatch):
    without_locks(monkeypatch)
    with RunLock(path):
        far = dataclasses.replace(read_holder(path), host="elsewhere")
    path.write_text(json.dumps(dataclasses.asdict(far)))
    assert is_locked(path)
    long_ago = path.stat().st_mtime - 3600
    os.utime(path, (long_ago, long_ago))
    assert not is_locked(path)


@pytest.fixture
def bystander():
    """A process that has nothing to do with any run."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.stdin.close()
    process.wait()


def test_a_reused_pid_is_never_signalled(path, bystander, monkeypatch):
    with RunLock(path):
        mine = read_holder(path)
    # The run died, and the system gave its process id to somebody else.
    stale = dataclasses.replace(mine, pid=bystander.pid)
    path.write_text(json.dumps(dataclasses.asdict(stale)))
    with pytest.raises(UserError, match="has no trainer"):
        signal_holder(path, signal.SIGKILL)
    # Even when the lock looks held, the start time gives it away.
    monkeypatch.setattr(lock_module, "is_locked", lambda path: True)
    with pytest.raises(UserError, match="cannot be reached"):
        signal_holder(path, signal.SIGKILL)
    # And after a restart of the machine the boot does.
    rebooted = dataclasses.replace(stale, process_start=process_start(bystander.pid), boot_id="before")
    path.write_text(json.dumps(dataclasses.asdict(rebooted)))
    with pytest.raises(UserError, match="cannot be reached"):
        signal_holder(path, signal.SIGKILL)
    assert bystander.poll() is None


def test_the_holder_itself_is_signalled(path, bystander, monkeypatch):
    with RunLock(path):
        mine = read_holder(path)
    right = dataclasses.replace(mine, pid=bystander.pid, process_start=process_start(bystander.pid))
    path.write_text(json.dumps(dataclasses.asdict(right)))
    monkeypatch.setattr(lock_module, "is_locked", lambda path: True)
    assert signal_holder(path, signal.SIGTERM) == bystander.pid
    assert bystander.wait(240) == -signal.SIGTERM


def test_a_zombie_has_no_start(bystander):
    assert process_start(bystander.pid) != ""
    bystander.kill()
    os.waitid(os.P_PID, bystander.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(bystander.pid) == ""
