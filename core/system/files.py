"""The one module that opens, creates, replaces and deletes files of ours.

Run folders, checkpoints and datasets come from colleagues, archives and shared servers, and may hold
anything: links that lead elsewhere, named pipes, files without end. What is promised here:

    no link is followed at the last step of a path (the folders before it are the user's own choice);
    only regular files are opened, and opening never waits for the other end of a pipe;
    a file that is written in place belongs to this user and has no second name (hard link);
    a read has a limit; temporary names cannot be guessed, and are new (O_EXCL);
    a deletion takes a link away, never what it leads to;
    files are for this user alone (0600, folders 0700).

Everything raises OSError with a reason in words, names that no file can have included.
`MAMBA_TUI_SHARED=1` is for people who share their folders: modes then follow the umask, and files that
belong to others are taken as one's own. docs/security.md tells the rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

SHARED_VARIABLE = "MAMBA_TUI_SHARED"
LONGEST_PREFIX = 150
"""Bytes of a name that its temporary name repeats, so that whoever sees one knows what it was for."""
_COPY_BYTES = 1 << 20
_SAFE = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def shared() -> bool:
    """Whether the user shares files with others, as the environment says."""
    return os.environ.get(SHARED_VARIABLE, "").strip().lower() not in ("", "0", "no", "false")


def file_mode(private: bool = True) -> int:
    """The mode to create a file with; the system takes the umask away from it."""
    return 0o600 if private and not shared() else 0o666


def folder_mode(private: bool = True) -> int:
    """The mode to create a folder with; the system takes the umask away from it."""
    return 0o700 if private and not shared() else 0o777


class Folder:
    """An open folder. Its entries are reached through it, so nothing can be slipped in between.

    A folder that is itself a link is refused unless `follow_links`. Close it, or use it in `with`.
    """

    def __init__(self, path: str | Path, *, follow_links: bool = False) -> None:
        self.path = Path(path)
        flags = os.O_RDONLY | os.O_DIRECTORY | _SAFE | (0 if follow_links else os.O_NOFOLLOW)
        with _reasons(self.path):
            self.descriptor = os.open(self.path, flags)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; once is enough."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def names(self) -> list[str]:
        """What lies in it, sorted."""
        return sorted(os.listdir(self.descriptor))

    def status(self, name: str) -> os.stat_result | None:
        """What is known of an entry, a link not followed; None where there is none."""
        try:
            with _reasons(self.path / name):
                return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int, mode: int = 0, *, follow_links: bool = False) -> int:
        """A descriptor of a regular file. It is emptied, where O_TRUNC asks that, once it is known."""
        with _reasons(self.path / name, self.descriptor):
            descriptor = os.open(
                _checked(name), flags & ~os.O_TRUNC | _SAFE | (0 if follow_links else os.O_NOFOLLOW), mode,
                dir_fd=self.descriptor,
            )  # fmt: skip
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, f"is {kind(info.st_mode)}, not a file", str(self.path / name))
            if flags & (os.O_WRONLY | os.O_RDWR):
                self._check_ours(name, info)
                if info.st_nlink > 1:
                    reason = "has a second name (a hard link), under which it would be changed too"
                    raise OSError(errno.EMLINK, reason, str(self.path / name))
            if flags & os.O_TRUNC:
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_to_read(self, name: str, *, follow_links: bool = False) -> BinaryIO:
        """A regular file, opened for reading."""
        return cast(BinaryIO, os.fdopen(self.open(name, os.O_RDONLY, follow_links=follow_links), "rb"))

    def open_in_place(self, name: str, flags: int = 0, *, private: bool = True) -> int:
        """A descriptor for reading and writing a file of ours where it is; created if there is none."""
        return self.open(name, os.O_RDWR | os.O_CREAT | flags, file_mode(private))

    def read_limited(self, name: str, limit: int, *, follow_links: bool = False) -> bytes:
        """All of a file of at most `limit` bytes."""
        with self.open_to_read(name, follow_links=follow_links) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)
            while len(data) <= limit and (more := file.read(min(limit + 1 - len(data), _COPY_BYTES))):
                data += more  # it grew, or does not tell its size
            if len(data) > limit:
                size = max(size, len(data))
                raise OSError(
                    errno.EFBIG, f"has {size:,} bytes, and {limit:,} are the most", str(self.path / name)
                )
        return data

    @contextlib.contextmanager
    def replacing(self, name: str, *, private: bool = True) -> Iterator[IO[bytes]]:
        """A new file that takes the place of `name` when the block ends, and is gone if it raises.

        Until then, and whatever interrupts it, the old file is as it was. A file that is not private
        keeps the mode of the one it replaces.
        """
        mode = file_mode(private)
        old = self.status(_checked(name))
        if old is not None and not stat.S_ISLNK(old.st_mode):
            if not stat.S_ISREG(old.st_mode):
                error = errno.EISDIR if stat.S_ISDIR(old.st_mode) else errno.EINVAL
                raise OSError(error, f"is {kind(old.st_mode)}, not a file", str(self.path / name))
            self._check_ours(name, old)
        temporary = _temporary_name(name)
        with _reasons(self.path / name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _SAFE
            descriptor = os.open(temporary, flags, mode, dir_fd=self.descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if old is not None and stat.S_ISREG(old.st_mode) and not private:
                    with contextlib.suppress(OSError):
                        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
                yield file
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self.descriptor)
            raise
        self.sync()

    def write_atomic(self, name: str, data: bytes, *, private: bool = True) -> None:
        """Replace a file by `data`, or leave it as it was."""
        with self.replacing(name, private=private) as file:
            file.write(data)

    def move(self, name: str, new: str) -> None:
        """Give an entry another name, in the place of whatever had it."""
        self.move_to(name, self, new)

    def move_to(self, name: str, folder: Folder, new: str) -> None:
        """Move an entry to another folder of the same file system, in the place of whatever had that name."""
        with _reasons(self.path / name):
            os.replace(
                _checked(name), _checked(new), src_dir_fd=self.descriptor, dst_dir_fd=folder.descriptor
            )

    def delete(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete a file, or a link without what it leads to."""
        try:
            with _reasons(self.path / name):
                os.unlink(_checked(name), dir_fd=self.descriptor)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def delete_matching(self, ours: Callable[[str], bool]) -> int:
        """Delete the entries whose names are `ours`, real folders with what is `ours` in them too.

        Returns the bytes that freed. What cannot be deleted stays.
        """
        freed = 0
        for name in filter(ours, self.names()):
            info = self.status(name)
            with contextlib.suppress(OSError):
                if info is not None and stat.S_ISDIR(info.st_mode):
                    with Folder.inside(self, name) as folder:
                        freed += folder.delete_matching(ours)
                    os.rmdir(name, dir_fd=self.descriptor)
                else:
                    self.delete(name)
                    freed += info.st_size if info and stat.S_ISREG(info.st_mode) else 0
        return freed

    @classmethod
    def inside(cls, parent: Folder, name: str) -> Folder:
        """A real folder in another one."""
        folder = cls.__new__(cls)
        folder.path = parent.path / name
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | _SAFE
        with _reasons(folder.path):
            folder.descriptor = os.open(_checked(name), flags, dir_fd=parent.descriptor)
        return folder

    def sync(self) -> None:
        """Make renames and deletions in it survive a power cut, where the system can."""
        with contextlib.suppress(OSError):  # network file systems may refuse
            os.fsync(self.descriptor)

    def _check_ours(self, name: str, info: os.stat_result) -> None:
        """Raise unless a file belongs to this user; root may also use what belongs to the folder's owner."""
        if shared() or info.st_uid == os.geteuid():
            return
        if os.geteuid() == 0 and info.st_uid == os.fstat(self.descriptor).st_uid:
            return
        reason = f"belongs to another user; {SHARED_VARIABLE}=1 allows that"
        raise PermissionError(errno.EPERM, reason, str(self.path / name))


def _parent(path: str | Path) -> tuple[Folder, str]:
    path = Path(path)
    return Folder(path.parent, follow_links=True), path.name


def open_to_read(path: str | Path, *, follow_links: bool = False) -> BinaryIO:
    """A regular file, opened for reading."""
    folder, name = _parent(path)
    with folder:
        return folder.open_to_read(name, follow_links=follow_links)


def read_limited(path: str | Path, limit: int, *, follow_links: bool = False) -> bytes:
    """All of a regular file of at most `limit` bytes."""
    folder, name = _parent(path)
    with folder:
        return folder.read_limited(name, limit, follow_links=follow_links)


def open_in_place(path: str | Path, flags: int = 0, *, private: bool = True) -> int:
    """A descriptor for reading and writing a file of ours where it is; created if there is none.

    `flags` may add os.O_APPEND or os.O_TRUNC.
    """
    folder, name = _parent(path)
    with folder:
        return folder.open_in_place(name, flags, private=private)


def open_to_append(path: str | Path, *, private: bool = True) -> BinaryIO:
    """A file of ours, unbuffered, to which is only ever added; created if there is none."""
    return cast(BinaryIO, os.fdopen(open_in_place(path, os.O_APPEND, private=private), "ab", buffering=0))


@contextlib.contextmanager
def replacing(path: str | Path, *, private: bool = True) -> Iterator[IO[bytes]]:
    """`Folder.replacing` for a path."""
    folder, name = _parent(path)
    with folder, folder.replacing(name, private=private) as file:
        yield file


def write_atomic(path: str | Path, data: bytes, *, private: bool = True) -> None:
    """Replace a file by `data`, or leave it as it was."""
    with replacing(path, private=private) as file:
        file.write(data)


def copy(source: str | Path, target: str | Path, *, private: bool = True) -> None:
    """Copy a regular file, whole or not at all."""
    with open_to_read(source) as old, replacing(target, private=private) as new:
        while block := old.read(_COPY_BYTES):
            new.write(block)


def delete(path: str | Path, *, missing_ok: bool = False) -> None:
    """Delete a file, or a link without what it leads to."""
    try:
        folder, name = _parent(path)
    except FileNotFoundError:
        if missing_ok:
            return
        raise
    with folder:
        folder.delete(name, missing_ok=missing_ok)


def delete_folder(path: str | Path, ours: Callable[[str], bool]) -> int:
    """Delete what is `ours` by its name in a real folder, and the folder if nothing else is in it.

    Returns the bytes that freed. Never raises; what cannot be deleted stays.
    """
    freed = 0
    with contextlib.suppress(OSError):
        folder, name = _parent(path)
        with folder:
            with Folder.inside(folder, name) as doomed:
                freed = doomed.delete_matching(ours)
            os.rmdir(name, dir_fd=folder.descriptor)
    return freed


def make_folder(path: str | Path, *, private: bool = True, follow_links: bool = False) -> None:
    """Make a folder, and those above it that are missing. One that is a link is refused."""
    path = Path(path)
    missing = []
    with _reasons(path):
        while not os.path.isdir(path):
            missing.append(path)
            if path.parent == path:
                break
            path = path.parent
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, folder_mode(private))
    if missing:
        path = missing[0]
    Folder(path, follow_links=follow_links).close()


def make_own_folder(path: str | Path) -> None:
    """Make a folder that others cannot look into. One that belongs to another user is refused."""
    make_folder(path)
    with Folder(path) as folder:
        info = os.fstat(folder.descriptor)
        if shared():
            return
        if info.st_uid != os.geteuid():
            reason = f"belongs to another user; {SHARED_VARIABLE}=1 allows that"
            raise PermissionError(errno.EPERM, reason, str(path))
        if info.st_mode & 0o077:
            os.fchmod(folder.descriptor, 0o700)


def sync_folder(path: str | Path) -> None:
    """Make renames and deletions in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        with Folder(path, follow_links=True) as folder:
            folder.sync()


def kind(mode: int) -> str:
    """What a file mode stands for, in words."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _checked(name: str) -> str:
    """A name of one step. Anything else would lead out of the folder."""
    if name in ("", ".", "..") or "/" in name:
        raise OSError(errno.EINVAL, "is not the name of a file", name)
    return name


def _temporary_name(name: str) -> str:
    prefix = name if len(os.fsencode(name)) <= LONGEST_PREFIX else "long-name"
    return f".{prefix}.{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def _reasons(path: Path, folder: int | None = None) -> Iterator[None]:
    """Say what the system's own words hide: a link that was not followed, a name that cannot be."""
    try:
        yield
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OSError(errno.EINVAL, "has a character that no file name can have", repr(path)[:300]) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK) and _is_link(path, folder):
            raise OSError(errno.ELOOP, "is a link, which is not followed here", str(path)) from error
        raise


def _is_link(path: Path, folder: int | None) -> bool:
    with contextlib.suppress(OSError, ValueError):
        name = path.name if folder is not None else path
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False
