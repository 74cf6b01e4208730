"""Checks a checkpoint file before anything in it is read into memory.

A checkpoint may come from anybody. `torch.load(weights_only=True)` runs no code in it, but it would unpack
whatever the archive claims to contain. So the archive's directory and the list of what its pickle asks for
are checked first: plain tensors, stored uncompressed, and nothing else.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError
from core.system.files import open_to_read

LARGEST_PICKLE = 1 << 26
MOST_ENTRIES = 1 << 20
MOST_VALUES = 1 << 22
DEEPEST = 64
LARGEST_NUMBER = 1 << 64
"""Larger than any number in a checkpoint; numbers with thousands of digits can't even be printed."""

# What the pickles of our checkpoints ask for: dictionaries, plain tensors, and their types of numbers.
_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device|\w+Storage)"
    r"|torch (float|bfloat|int|uint)\d+|torch bool"
    r"|torch\.serialization _get_layout|torch\.storage UntypedStorage"
)
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE"}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_archive(path: Path) -> None:
    """Raise UserError unless a file is an archive of plain tensors that is no larger than it looks.

    A link that the user names is followed; only regular files are opened. Raises OSError too.
    """
    with open_to_read(path, follow_links=True) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                size = path.stat().st_size
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    raise UserError(f"{path} is not a checkpoint of mamba-tui: its weights are compressed")
                if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
                    raise UserError(f"{path} is damaged: it claims to hold more than its {size:,} bytes")
                pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
                if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                    raise UserError(f"{path} is not a checkpoint: it cannot be read as weights")
                _check_pickle(archive.read(pickles[0]), path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
            file.seek(0)
            if _is_program(file):
                raise _program(path) from None
            raise UserError(f"{path} is not a checkpoint: it cannot be read as weights") from None


def _program(path: Path) -> UserError:
    return UserError(
        f"{path} carries program code instead of plain weights, so it was not opened; "
        "use checkpoints that mamba-tui made"
    )


def _check_pickle(data: bytes, path: Path) -> None:
    """Raise UserError if a pickle asks for anything that plain weights don't need."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("STACK_GLOBAL", "INST"):
            raise _program(path)
        if operation.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            if str(argument).startswith("torch"):
                name = str(argument).replace(" ", ".")[:80]
                raise UserError(
                    f"{path} contains something other than plain tensors ({name}), so it was not opened"
                )
            raise _program(path)


def _is_program(file: Any) -> bool:
    """Whether a file is a complete pickle that calls something. It is scanned, never run."""
    try:
        return any(operation.name in _CALLS for operation, *_ in list(pickletools.genops(file)))
    except Exception:  # the ways in which bytes fail to be a pickle are countless
        return False


def check_values(payload: Any, path: Path) -> None:
    """Raise UserError unless all values are plain: no endless nesting, no oversized numbers."""
    problem = UserError(
        f"{path} is not a checkpoint of mamba-tui: its values are nested too deeply or too large"
    )
    seen: set[int] = set()
    level, depth = [payload], 0
    while level:
        if depth > DEEPEST or len(seen) > MOST_VALUES:
            raise problem
        below: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list, tuple)):
                if id(value) not in seen:
                    seen.add(id(value))
                    below += [*value.keys(), *value.values()] if isinstance(value, dict) else value
            elif isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
                raise problem
        level, depth = below, depth + 1


def check_tensors(weights: Any, path: Path) -> None:
    """Raise UserError unless every weight is a plain tensor of real numbers with a name."""
    for name, tensor in weights.items():
        kind = kind_of_tensor(tensor)
        if not isinstance(name, str) or kind:
            raise UserError(
                f"{path} cannot be used: its weight {str(name)[:80]} is {kind or 'without a name'}"
            )


def kind_of_tensor(tensor: Any) -> str:
    """What a weight is instead of a plain tensor; "" for a plain one."""
    if not isinstance(tensor, torch.Tensor):
        return f"of type {type(tensor).__name__}, not a tensor"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return "a sparse, quantized or nested tensor"
    if tensor.dtype not in _FLOATS:
        return (
            f"of {str(tensor.dtype).removeprefix('torch.')}; accepted: float32, bfloat16, float16 or float64"
        )
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}"
    return "larger than its stored data" if tensor.untyped_storage().nbytes() < tensor.nbytes else ""
