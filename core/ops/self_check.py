"""Whether each Triton operation computes on this GPU what its plain path does: asked once per kind of GPU.

The kernels are tested on few GPUs. On another one a compiler may make something wrong of them, without an
error. So the first process that uses such a GPU gives every operation small inputs, and compares results and
gradients with float64, which always takes the plain path. What is wrong is left out from then on. The answers
are kept in the user's cache folder, by GPU, versions of torch and Triton, and the kernels' own sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from core.ops.dispatch import HAS_TRITON, leave_out
from core.ops.self_check_cases import CASES, Case, WrongResultError
from core.system import files
from core.system.folders import cache_root

MADE_OF = {
    "mamba_mixer": ("causal_conv", "selective_scan"),
    "attention_mixer": ("window_attention", "rotary"),
}
"""Operations whose kernels contain those of others; what is wrong with a part is wrong with the whole."""
LARGEST_RECORD = 1 << 16
LONGEST_REASON = 300

_told: dict[str, str] = {}


def check_kernels(device: torch.device | str, cases: Mapping[str, Case] | None = None) -> list[str]:
    """Check what was not checked before on this kind of GPU, and leave out what is wrong.

    Call it before anything is captured or compiled. On other devices than CUDA, and in Triton's interpreter,
    nothing is checked. Random states stay as they are.

    Returns:
        a sentence for each operation that is left out.
    """
    device = torch.device(device)
    if device.type != "cuda" or not HAS_TRITON or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return []
    return check(device, CASES if cases is None else cases, record_of(device))


def check(device: torch.device, cases: Mapping[str, Case], record: Path) -> list[str]:
    """`check_kernels` on any device, with answers kept in the file `record`."""
    known = _read(record)
    fresh = [name for name in cases if name not in known]
    if fresh:
        known |= {name: _problem(cases[name], device) for name in fresh}
        _write(record, known)
    _told.update({name: problem for name, problem in known.items() if name in cases})
    wrong = {name: problem for name, problem in _told.items() if problem}
    for whole, parts in MADE_OF.items():
        for part in parts:
            if part in wrong and whole in _told:
                wrong.setdefault(whole, f"{part} is a part of it")
    leave_out(wrong)
    return [
        f"the kernels of {name} are wrong on this GPU ({problem}): its slower plain path is taken; "
        f"delete {record} to check again"
        for name, problem in sorted(wrong.items())
        if name in cases
    ]


def _problem(case: Case, device: torch.device) -> str:
    """What is wrong with an operation; "" for nothing."""
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            case(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    except WrongResultError as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that gives up, a launch that is refused
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:LONGEST_REASON]
    return ""


def record_of(device: torch.device) -> Path:
    """The file that the answers for a kind of GPU are kept in."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    kind = f"sm{properties.major}{properties.minor}"
    parts = (kind, properties.name, torch.__version__, triton.__version__, _sources())
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    return cache_root() / "kernels" / f"{kind}-{digest}.json"


@functools.cache
def _sources() -> str:
    """A hash of everything that kernels are made from."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*here.rglob("*.py"), *here.parent.glob("generation/cuda/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(record: Path) -> dict[str, str]:
    """The answers that are known; none where there is no such file or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads(files.read_limited(record, LARGEST_RECORD))
        if isinstance(known, dict) and all(isinstance(problem, str) for problem in known.values()):
            return {name: problem[:LONGEST_REASON] for name, problem in known.items()}
    return {}


def _write(record: Path, known: Mapping[str, str]) -> None:
    """Keep the answers; where that cannot be, the next process checks again."""
    with contextlib.suppress(OSError):
        files.make_own_folder(record.parent)
        files.write_atomic(record, json.dumps(known, indent=1).encode())


def forget(names: Sequence[str] = ()) -> None:
    """Forget in this process what was checked, for tests."""
    for name in names or list(_told):
        _told.pop(name, None)
    leave_out(name for name, problem in _told.items() if problem)
