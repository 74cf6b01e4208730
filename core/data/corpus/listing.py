"""Lists the texts of a dataset folder: every .txt and .txt.gz below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from core.system.files import kind

SUFFIXES = (".txt", ".txt.gz")
MOST_OUTSIDE = 1_000_000
"""Names looked through behind links that lead out of the folder: enough for any shelf, not for a disk."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file to read. `signature` changes with any write: size, mtime, ctime, inode."""

    name: str
    path: str
    size: int
    signature: tuple[int, int, int, int]
    note: str = ""


@dataclass
class Listing:
    """The texts of a folder sorted by name, and a sentence for everything skipped."""

    sources: list[SourceFile] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    others: int = 0


def list_texts(root: str, outside_links: bool = False) -> Listing:
    """All texts under `root`, including subfolders, sorted by name; a single file lists itself.

    Links inside the folder are followed. A folder or file that is reached a second time is skipped with a
    sentence, and so is a link that leads out of the folder, which may show more than it should, unless
    `outside_links`. A link up to a folder that contains `root` itself is never followed: it could bring in
    the whole machine.
    """
    listing = Listing()
    if not os.path.isdir(root):
        name = os.path.basename(root)
        _take_file(listing, name, root, os.path.islink(root), {})
        return listing
    seen_folders: dict[tuple[int, int], str] = {}
    seen_files: dict[tuple[int, int], str] = {}
    for name, path, linked in sorted(_walk(root, outside_links, seen_folders, listing)):
        _take_file(listing, name, path, linked, seen_files)
    return listing


def _walk(
    root: str, outside_links: bool, seen: dict[tuple[int, int], str], listing: Listing
) -> Iterator[tuple[str, str, bool]]:
    """Yields (name, path, is a link) of everything named like a text that isn't a folder."""
    inside = os.path.realpath(root)
    folders = [("", root, "")]  # prefix of the names, path, the link out of the dataset folder that led here
    seen_outside = 0
    while folders:
        prefix, folder, outside = folders.pop()
        if outside and seen_outside >= MOST_OUTSIDE:
            listing.skipped[outside] = (
                f"not all of it was looked through: links out of the dataset folder lead to more than "
                f"{MOST_OUTSIDE:,} files and folders"
            )
            continue
        try:
            entries = list(os.scandir(folder))
            seen_outside += len(entries) if outside else 0
        except OSError as error:
            listing.skipped[prefix or folder] = f"folder cannot be opened: {error.strerror}"
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                if entry.name.lower().endswith(SUFFIXES):
                    listing.skipped[name] = "hidden file, not read"
                continue
            try:
                is_text = entry.name.lower().endswith(SUFFIXES)
                linked, is_folder = entry.is_symlink(), entry.is_dir()
                if linked and is_folder and outside_links and _leads_up(entry.path, inside):
                    target = os.path.realpath(entry.path)
                    listing.skipped[name] = (
                        f"is a link up to {target}, which contains the dataset folder itself"
                    )
                elif (
                    linked and not outside_links and (is_text or is_folder) and _leads_out(entry.path, inside)
                ):
                    listing.skipped[name] = (
                        f"is a link that leads out of the dataset folder, to {os.path.realpath(entry.path)}; "
                        "outside_links = true reads it"
                    )
                elif is_folder:
                    if _first_visit(entry, name, seen, listing):
                        beyond = outside or (name if linked and _leads_out(entry.path, inside) else "")
                        folders.append((name + "/", entry.path, beyond))
                    if is_text:
                        listing.skipped.setdefault(name, "is a folder; the texts in it are read")
                elif is_text:
                    yield name, entry.path, linked
                else:
                    listing.others += 1
            except OSError as error:  # a link to itself, or a faulty file system
                listing.skipped[name] = f"cannot be read: {error.strerror or error}"


def _leads_out(path: str, inside: str) -> bool:
    """Whether a link leads to something that exists outside of a folder."""
    return os.path.exists(path) and not os.path.realpath(path).startswith(inside.rstrip("/") + "/")


def _leads_up(path: str, inside: str) -> bool:
    """Whether a link leads to a folder that contains another folder."""
    target = os.path.realpath(path)
    return target != inside and inside.startswith(target.rstrip("/") + "/")


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
        listing.skipped[name] = f"is {kind(info.st_mode)}, not a text file"
        return
    first = seen.setdefault((info.st_dev, info.st_ino), name) if info.st_ino else name
    if first != name:
        listing.skipped[name] = f"is the same file as {first}, which is already read"
        return
    signature = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
    note = f"link to {os.path.realpath(path)}" if linked else ""
    listing.sources.append(SourceFile(name, path, info.st_size, signature, note))
