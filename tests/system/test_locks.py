"""One kind of lock: alone or shared, and gone with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from core.system import locks
from core.system.files import open_in_place, open_to_read
from core.system.locks import NoLocksError, locked, try_lock, unlock

HOLD = """
import sys
from pathlib import Path
from core.system.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_alone_or_many_together(tmp_path):
    one, two = open_in_place(tmp_path / "lock"), open_in_place(tmp_path / "lock")
    with open_to_read(tmp_path / "lock") as three:
        assert try_lock(one)
        assert not try_lock(two)
        assert not try_lock(three, shared=True)
        unlock(one)
        assert try_lock(two, shared=True)
        assert try_lock(three, shared=True)
        assert not try_lock(one)
    os.close(one)
    os.close(two)


def test_a_killed_holder_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        waits = []

        def waiting():
            waits.append(1)
            if len(waits) == 2:
                holder.kill()

        with locked(path, waiting):
            assert len(waits) >= 2


def test_the_lock_is_let_go_when_the_block_raises(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "lock"):
        raise RuntimeError
    with locked(tmp_path / "lock", lambda: pytest.fail("it is still held")):
        pass


def test_a_link_is_not_locked(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_without_locks_one_goes_on_and_may_know(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    descriptor = open_in_place(tmp_path / "lock")
    with pytest.raises(NoLocksError, match="No locks available"):
        try_lock(descriptor)
    os.close(descriptor)
    with locked(tmp_path / "lock"):
        pass
    assert fcntl is locks.fcntl
