"""Lists the texts of a dataset folder: every .txt and .txt.gz below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

SUFFIXES = (".txt", ".txt.gz")


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file to read. `signature` changes with any write: size, mtime, ctime, inode."""

    name: str
    path: str
    size: int
    signature: tuple[int, int, int, int]
    note: str = ""


@dataclass
class Listing:
    """The texts of a folder sorted by name, and a sentence for everything skipped."""

    found: list[Found] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    others: int = 0


def list_texts(root: str) -> Listing:
    """All texts under `root`, subfolders included, sorted by name; a single file lists itself.

    Links are followed; a folder or file reached a second time is skipped with a sentence.
    """
    listing = Listing()
    if not os.path.isdir(root):
        name = os.path.basename(root)
        _take_file(listing, name, root, os.path.islink(root), {})
        return listing
    seen_folders: dict[tuple[int, int], str] = {}
    seen_files: dict[tuple[int, int], str] = {}
    for name, path, linked in sorted(_walk(root, seen_folders, listing)):
        _take_file(listing, name, path, linked, seen_files)
    return listing


def _walk(root: str, seen: dict[tuple[int, int], str], listing: Listing) -> Iterator[tuple[str, str, bool]]:
    """Yields (name, path, is a link) of everything named like a text that is not a folder."""
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            listing.skipped[prefix or folder] = f"folder cannot be opened: {error.strerror}"
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                if entry.name.lower().endswith(SUFFIXES):
                    listing.skipped[name] = "hidden file, not read"
                continue
            if entry.is_dir():
                if _first_visit(entry, name, seen, listing):
                    folders.append((name + "/", entry.path))
                if entry.name.lower().endswith(SUFFIXES):
                    listing.skipped.setdefault(name, "is a folder; the texts in it are read")
            elif entry.name.lower().endswith(SUFFIXES):
                yield name, entry.path, entry.is_symlink()
            else:
                listing.others += 1


def _first_visit(
    entry: os.DirEntry[str], name: str, seen: dict[tuple[int, int], str], listing: Listing
) -> bool:
    """False, with a sentence, if a link has led to this folder before."""
    try:
        info = entry.stat()
    except OSError as error:
        listing.skipped[name] = f"folder cannot be opened: {error.strerror}"
        return False
    if not info.st_ino:  # a file system without inode numbers: no links, no cycles
        return not entry.is_symlink()
    first = seen.setdefault((info.st_dev, info.st_ino), name)
    if first != name:
        listing.skipped[name] = f"leads to the folder {first}, which is already read"
    return first == name


def _take_file(
    listing: Listing, name: str, path: str, linked: bool, seen: dict[tuple[int, int], str]
) -> None:
    """Add a regular file to the listing, or a sentence that says why it is skipped."""
    try:
        info = os.stat(path)
    except OSError as error:
        reason = "is a link that leads nowhere" if linked else f"cannot be read: {error.strerror}"
        listing.skipped[name] = reason
        return
    if not stat.S_ISREG(info.st_mode):
        listing.skipped[name] = f"is {_kind(info.st_mode)}, not a text file"
        return
    first = seen.setdefault((info.st_dev, info.st_ino), name) if info.st_ino else name
    if first != name:
        listing.skipped[name] = f"is the same file as {first}, which is already read"
        return
    signature = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
    note = f"link to {os.path.realpath(path)}" if linked else ""
    listing.found.append(Found(name, path, info.st_size, signature, note))


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a folder" if stat.S_ISDIR(mode) else "something else"
