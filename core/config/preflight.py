"""What can be known to be impossible before anything starts: a device, a folder, a file that is not there.

A trainer finds the same, but only after it has loaded torch and left a run that never began.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from core.config.schema import RunConfig
from core.config.setting import ConfigError, Problem
from core.system.hardware import resolve_device

BUILT_IN_TOKENIZERS = ("auto", "char", "byte", "gpt2")


def check_possible(config: RunConfig, *, resuming: bool = False, folder: bool = True) -> None:
    """Raise UserError (ConfigError with every problem) unless a run could start here and now.

    A run that is resumed has a tokenizer of its own, so the file it came from may be gone. Without
    `folder` the dataset folder is not looked at: the sample text may still be written there. Costs
    a few file system calls; imports no torch and reads no text.
    """
    resolve_device(config.hardware.device)
    problems = [
        Problem(key, getattr(config.data, key), accepted)
        for key, accepted in {
            "dataset_dir": _folder_problem(config.data.dataset_dir) if folder else "",
            "tokenizer": "" if resuming else _tokenizer_problem(config.data.tokenizer),
            "encoding": _encoding_problem(config.data.encoding),
        }.items()
        if accepted
    ]
    if problems:
        raise ConfigError(problems)


def _folder_problem(folder: str) -> str:
    """What would be accepted in place of a dataset folder that cannot be read; "" where it can."""
    path = Path(os.path.expanduser(folder))
    try:
        if not path.exists():
            return "a folder of .txt files; this one does not exist"
        if path.is_dir():
            with os.scandir(path) as entries:
                next(entries, None)
        elif not path.is_file():
            return "a folder of .txt files"
    except OSError as error:
        return f"a folder that can be read ({error.strerror})"
    return ""


def _tokenizer_problem(tokenizer: str) -> str:
    if tokenizer in BUILT_IN_TOKENIZERS:
        return ""
    try:
        there = Path(os.path.expanduser(tokenizer)).is_file()
    except OSError as error:
        return f"the path of a tokenizer.json ({error.strerror})"
    words = " or ".join(f'"{name}"' for name in BUILT_IN_TOKENIZERS)
    return "" if there else f"{words}, or the path of a tokenizer.json; there is no such file"


def _encoding_problem(encoding: str) -> str:
    if encoding == "auto":
        return ""
    try:
        codecs.lookup(encoding)
    except (LookupError, ValueError):
        return '"auto" or the name of an encoding, such as "latin-1"'
    return ""
