"""Checks before anything starts: the device, the dataset folder, the tokenizer file, the encoding.

The trainer would discover the same problems, but only after loading torch, and it would leave a run that
never started.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from core.config.schema import RunConfig
from core.config.setting import ConfigError, Problem
from core.errors import UserError
from core.system.hardware import cuda_devices, resolve_device

BUILT_IN_TOKENIZERS = ("auto", "char", "byte", "gpt2")


def check_possible(config: RunConfig, *, resuming: bool = False, folder: bool = True) -> None:
    """Raise UserError (ConfigError listing every problem) unless a run could start on this machine.

    A resumed run has its own copy of the tokenizer, so the original file may be gone. With `folder=False` the
    dataset folder isn't checked: the sample text may still be written there. Takes a few file system calls;
    imports no torch and reads no text.
    """
    resolve_device(config.hardware.device)
    ranks_wanted(config)
    problems = [
        Problem(key, getattr(config.data, key), accepted)
        for key, accepted in {
            "dataset_dir": _folder_problem(config.data.dataset_dir) if folder else "",
            "tokenizer": "" if resuming else _tokenizer_problem(config.data.tokenizer),
            "encoding": _encoding_problem(config.data.encoding),
        }.items()
        if accepted
    ]
    teacher = config.training.teacher
    if teacher and not resuming and not os.path.exists(os.path.expanduser(teacher)):
        accepted = "the folder of a run or the path of a checkpoint; there is no such file"
        problems.append(Problem("teacher", teacher, accepted))
    if problems:
        raise ConfigError(problems)


def ranks_wanted(config: RunConfig) -> int:
    """How many ranks a run would have on this machine. Raises UserError if it can't have them."""
    ranks = config.hardware.ranks
    if ranks == 1:
        return 1
    wanted = config.hardware.device
    device = resolve_device(wanted)
    gpus = len(cuda_devices()) if device.startswith("cuda") else 0
    ranks = ranks or gpus or 1
    if ranks > 1 and (":" in device or device == "mps"):
        raise UserError(
            f'device is "{wanted}", one device for {ranks} ranks; accepted: cuda or cpu, or ranks = 1'
        )
    if 0 < gpus < ranks:
        raise UserError(f"ranks is {ranks}, but this machine has {gpus} GPUs; accepted: 0 to {gpus}")
    check_divides(config, ranks)
    return ranks


def check_divides(config: RunConfig, ranks: int) -> None:
    """Raise UserError if `ranks` can't share a batch evenly."""
    batch = config.training.batch_size
    if batch % ranks:
        near = max(1, round(batch / ranks)) * ranks
        raise UserError(
            f"batch_size is {batch}, which {ranks} ranks cannot divide evenly; accepted: a multiple of "
            f"{ranks}, such as {near}"
        )


def _folder_problem(folder: str) -> str:
    """What would be accepted instead of an unreadable dataset folder; "" if it is readable."""
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
        return f"a readable folder ({error.strerror})"
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
