"""A sample corpus for a first run without any text: the Python language reference.

Every Python installation includes it (`pydoc_data.topics`, about half a megabyte), so nothing is downloaded.
It is written as several documents, so that whole ones can be used for validation.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from core.config.schema import DataConfig
from core.data.corpus.listing import SUFFIXES
from core.errors import UserError
from core.system.files import make_folder, write_atomic

FOLDER = "python-reference"
DOCUMENTS = 16
UNTOUCHED = {".gitkeep", ".gitignore", ".DS_Store"}
"""Files that may be in a dataset folder although nobody has put any text there."""
EXPLANATION = (
    "there is no text in {folder} yet, so a sample was written there: the Python language reference "
    "that comes with this Python, {characters:,} characters in {files} files under {name}/. "
    "Put your own .txt files there instead for a model of your own."
)


def has_texts(dataset: str | Path) -> bool:
    """True if a dataset folder (or file) contains anything named like a text, readable or not."""
    if os.path.isfile(dataset):
        return True
    seen = set()
    for folder, folders, files in os.walk(dataset, followlinks=True):
        with contextlib.suppress(OSError):
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                folders.clear()
                continue
            seen.add((info.st_dev, info.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in files):
            return True
    return False


def is_untouched_default(dataset: str | Path) -> bool:
    """Whether this is the default dataset folder and nobody has put anything there, or even created it."""
    if os.path.islink(dataset) or Path(dataset) != Path(DataConfig().dataset_dir):
        return False
    try:
        return not set(os.listdir(dataset)) - UNTOUCHED
    except FileNotFoundError:
        return True
    except OSError:
        return False


def no_text(dataset: str | Path) -> str:
    """Why there is nothing to learn from in a dataset folder, and what to do."""
    if not os.path.exists(dataset):
        return f"dataset_dir is {dataset}, which does not exist; accepted: a folder of .txt files"
    return f"dataset_dir is {dataset}, which contains no text; accepted: a folder of .txt or .txt.gz files"


def write_sample(dataset: str | Path) -> str:
    """Write the sample corpus below `dataset`. Returns a sentence that says so.

    Raises UserError if there is text already, or if nothing can be written.
    """
    folder = Path(dataset)
    if has_texts(folder):
        raise UserError(f"{folder} contains text already: the sample corpus is only for an empty folder")
    documents = sample_documents()
    try:
        make_folder(folder, private=False, follow_links=True)
        make_folder(folder / FOLDER, private=False)
        for name, text in documents.items():
            write_atomic(folder / FOLDER / f"{name}.txt", text.encode(), private=False)
    except OSError as error:
        raise UserError(
            f"the sample corpus cannot be written to {folder}: {error.strerror or error}"
        ) from error
    characters = sum(map(len, documents.values()))
    return EXPLANATION.format(folder=folder, characters=characters, files=len(documents), name=FOLDER)


def sample_documents() -> dict[str, str]:
    """The sample corpus by name: the topics distributed by size to documents of about equal length."""
    from pydoc_data.topics import topics

    groups: list[list[str]] = [[] for _ in range(DOCUMENTS)]
    sizes = [0] * DOCUMENTS
    for topic in sorted(topics, key=lambda topic: (-len(topics[topic]), topic)):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(topic)
        sizes[smallest] += len(topics[topic])
    documents = {}
    for number, names in enumerate(groups, start=1):
        text = "\n\n".join(topics[name].strip("\n") for name in sorted(names)) + "\n"
        first = re.sub(r"[^a-z0-9]+", "-", min(names).lower()).strip("-")
        documents[f"{number:02}-{first}"] = text
    return documents
