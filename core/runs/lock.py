"""Whether a run is alive: its trainer holds an OS lock, which no crash can leave behind.

If locks aren't available (no fcntl, a file system without locks), the lock file contains the process id, its
start time, the boot and the host, and the trainer updates the file's time as a heartbeat.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import UserError
from core.runs.event_fields import COUNT, MOMENT
from core.system.files import open_in_place, open_to_read, read_limited, shared
from core.system.locks import NoLocksError, try_lock, unlock

HEARTBEAT_SECONDS = 2.0
HEARTBEAT_LIMIT = 30.0
PATIENCE_SECONDS = 2.0
LARGEST_LOCK = 4096


@dataclass(frozen=True)
class Holder:
    """The process that holds, or last held, a run's lock."""

    pid: int
    boot_id: str
    process_start: str
    host: str
    since: float
    method: str

    @property
    def here(self) -> bool:
        """True if this process id is the same process: same host, same boot, same start time."""
        return (
            self.pid > 0
            and self.host == platform.node()
            and self.boot_id == boot_id()
            and self.process_start == process_start(self.pid) != ""
        )

    @property
    def gone(self) -> bool:
        """True if this process is known to have ended: it was on this host and no longer exists."""
        return self.pid > 0 and self.host == platform.node() and not self.here

    def __str__(self) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        where = "" if self.host == platform.node() else f" on {self.host}"
        return f"process {self.pid}{where} since {moment}"


def boot_id() -> str:
    """A text that changes with every boot of the machine; "" if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _ask("sysctl", "-n", "kern.boottime")


def process_start(pid: int) -> str:
    """When a process started, as the system reports it; "" if it doesn't exist or is a zombie.

    Together with the boot id it distinguishes a process from a later one with the same id.
    """
    try:
        # The second field is the program's name in parentheses and may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _ask("ps", "-o", "lstart=", "-p", str(pid))


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class RunLock:
    """The trainer's side. Use it as a context manager around the trainer's whole life.

    Raises UserError that names the other process if the run is held already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._ended = threading.Event()

    def __enter__(self) -> RunLock:
        self._descriptor = open_in_place(self.path)
        if not shared():
            os.fchmod(self._descriptor, 0o600)  # anybody who can open it can hold it
        method = self._take()
        holder = Holder(
            os.getpid(), boot_id(), process_start(os.getpid()), platform.node(), time.time(), method
        )
        data = json.dumps(asdict(holder)).encode()
        # In place, because the lock belongs to this file and a rename would lose it. Padded, so that the file
        # is never empty or cut in the middle.
        os.pwrite(self._descriptor, data.ljust(512), 0)
        os.ftruncate(self._descriptor, max(512, len(data)))
        if method == "heartbeat":
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        elif hasattr(os, "register_at_fork"):
            # A forked child would share the lock and make a dead trainer look alive.
            os.register_at_fork(after_in_child=self._forget)
        return self

    def _take(self) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            holder = read_holder(self.path)
            with contextlib.suppress(NoLocksError):
                if try_lock(self._descriptor):
                    return "flock"
                # It may be a reader that checks whether the run is alive, which takes microseconds.
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                os.close(self._descriptor)
                raise UserError(refusal(self.path.absolute().parent.name, holder))
            if holder is not None and holder.method == "heartbeat" and _beating(self.path, holder):
                os.close(self._descriptor)
                raise UserError(refusal(self.path.absolute().parent.name, holder))
            return "heartbeat"

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _forget(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        holder = read_holder(self.path)
        if holder is not None and holder.method == "heartbeat":
            released = asdict(holder) | {"pid": 0}
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, json.dumps(released).encode().ljust(512), 0)
        else:
            unlock(self._descriptor)
        self._forget()


def refusal(name: str, holder: Holder | None) -> str:
    """Why a second trainer must not start, as far as the lock's holder is known."""
    if holder is not None and holder.gone:
        return (
            f'run "{name}" cannot be trained now: its trainer, {holder}, has ended, but another program '
            "holds the file run.lock in its folder; close whatever reads that file"
        )
    who = str(holder) if holder else "another process"
    return f'run "{name}" is already being trained by {who}; attach to it, or stop it first'


def read_holder(path: Path) -> Holder | None:
    """Who wrote the lock file; None if it is missing or malformed."""
    try:
        values = json.loads(read_limited(path, LARGEST_LOCK))
        return Holder(
            pid=COUNT.read(values["pid"]),
            boot_id=str(values["boot_id"]),
            process_start=str(values["process_start"]),
            host=str(values["host"]),
            since=MOMENT.read(values["since"]),
            method=str(values["method"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _beating(path: Path, holder: Holder) -> bool:
    """Whether a holder without an OS lock is still running."""
    if holder.host == platform.node():
        return holder.here
    try:
        # abs(), because a clock that was set back must not keep a dead run alive forever.
        return abs(time.time() - path.stat().st_mtime) < HEARTBEAT_LIMIT
    except OSError:
        return False


def is_locked(path: Path) -> bool:
    """True while a trainer holds the lock file at `path`."""
    try:
        with open_to_read(path) as file:
            with contextlib.suppress(NoLocksError):
                if not try_lock(file, shared=True):
                    return True
            holder = read_holder(path)
            return holder is not None and holder.method == "heartbeat" and _beating(path, holder)
    except OSError:
        return False


def signal_holder(path: Path, number: signal.Signals) -> int:
    """Send a signal to the trainer that holds the lock, and never to another process.

    Raises UserError if the run isn't held, or its process can't be identified with certainty.
    """
    name = path.parent.name
    holder = read_holder(path)
    if not is_locked(path) or holder is None:
        raise UserError(f'run "{name}" has no trainer to send a signal to')
    if not holder.here:
        raise UserError(f'run "{name}" is held by {holder}, which cannot be reached from here')
    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(holder.pid)
        try:
            # The descriptor pins the process: if it still matches now, its id can't be reused.
            if not holder.here:
                raise UserError(f'run "{name}" has no trainer to send a signal to')
            signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)
    else:
        os.kill(holder.pid, number)
    return holder.pid
