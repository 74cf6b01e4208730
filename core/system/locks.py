"""The one kind of lock: the operating system's, on an open file (flock).

It ends with the process that holds it, however that ends, so nothing a crash leaves behind looks like a
holder. Many may hold a file shared, or one alone. The library `filelock` knows no shared locks and empties
the file it locks, which tells who holds a run; so there is this one way instead of two.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from core.system.files import open_in_place

LOOK_SECONDS = 0.1


class NoLocksError(OSError):
    """The file system has no locks."""


def try_lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file without waiting; False while another holds it. Raises NoLocksError."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # A network file system that makes these locks of its own kind refuses one that does not fit the
        # way the file was opened (EBADF): that one is as good as none.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise NoLocksError(error.errno, error.strerror) from error
    return True


def unlock(file: int | IO[bytes]) -> None:
    """Let others lock an open file. Never raises."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the file at `path` alone, made if there is none; `waiting` is called while another has it.

    Where the file system has no locks, one process at a time is the user's care. Raises OSError.
    """
    descriptor = open_in_place(path)
    try:
        wait_for_lock(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def wait_for_lock(file: int | IO[bytes], waiting: Callable[[], None]) -> None:
    """Lock an open file as soon as nobody else holds it, calling `waiting` meanwhile."""
    with contextlib.suppress(NoLocksError):
        while not try_lock(file):
            waiting()
            time.sleep(LOOK_SECONDS)
