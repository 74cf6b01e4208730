"""The only kind of lock: the operating system's, on an open file (flock).

It ends with the process that holds it, however that ends, so nothing that a crash leaves behind looks like a
holder. Many processes may share a lock, or one may hold it alone. The library `filelock` has no shared locks
and empties the file it locks, which says who holds a run; so there is this one way instead of two.
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
    """The file system doesn't support locks."""


def try_lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Lock an open file without waiting; False if another process holds it. Raises NoLocksError."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # A network file system that implements these locks differently refuses one that doesn't match the way
        # the file was opened (EBADF); that counts as having no locks.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise NoLocksError(error.errno, error.strerror) from error
    return True


def unlock(file: int | IO[bytes]) -> None:
    """Release the lock on an open file. Never raises."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the file at `path` alone, creating it if necessary; `waiting` is called while another process has
    it.

    If the file system has no locks, it is up to the user to run one process at a time. Raises OSError.
    """
    descriptor = open_in_place(path)
    try:
        wait_for_lock(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)


def wait_for_lock(file: int | IO[bytes], waiting: Callable[[], None]) -> None:
    """Lock an open file as soon as nobody else holds it, calling `waiting` in the meantime."""
    with contextlib.suppress(NoLocksError):
        while not try_lock(file):
            waiting()
            time.sleep(LOOK_SECONDS)
