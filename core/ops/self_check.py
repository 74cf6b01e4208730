"""Whether each Triton operation computes the same on this GPU as its plain path: checked once per kind of
GPU.

The kernels are tested on few GPUs (TRIED). On another one a compiler may produce wrong code without an error.
So the first process on such a GPU gives small inputs to every operation that its model needs, and compares
results and gradients with float64, which always takes the plain path. Wrong operations aren't used from then
on. The results are stored in the user's cache folder, by GPU, versions of torch and Triton, and the kernels'
sources. Computing takes 0.2 s for all of them; compiling takes half a minute, once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from core.ops.dispatch import HAS_TRITON, leave_out
from core.ops.self_check_cases import CASES, Case, WrongResultError, cases_for
from core.system import files
from core.system.folders import cache_root

MADE_OF = {
    "mamba_mixer": ("causal_conv", "selective_scan"),
    "attention_mixer": ("window_attention", "rotary"),
}
"""Operations whose kernels contain those of others; if a part is wrong, so is the whole."""
TRIED = frozenset({("sm90", "3.6")})
"""GPUs and versions of Triton on which all tests marked cuda have passed (benchmarks/RESULTS.md)."""
LARGEST_RECORD = 1 << 16
LONGEST_REASON = 300

_told: dict[str, str] = {}


def check_kernels(
    device: torch.device | str, mixers: Iterable[str], more: Mapping[str, Case] | None = None
) -> list[str]:
    """Check operations that haven't been checked on this kind of GPU, and don't use wrong ones.

    Call it before anything is captured or compiled. Nothing is checked on devices other than CUDA, on GPUs
    that were TRIED, and in Triton's interpreter. Random states don't change.

    Args:
        device: where the model will be.
        mixers: the kinds of its layers, as in `attention_type`.
        more: cases of operations outside of `core.ops`.

    Returns:
        a sentence for each operation that isn't used.
    """
    device = torch.device(device)
    if device.type != "cuda" or not HAS_TRITON or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return []
    if _kind(device) in TRIED:
        return []
    return check(device, cases_for(mixers) | dict(more or {}), record_of(device))


def check(device: torch.device, cases: Mapping[str, Case], record: Path) -> list[str]:
    """`check_kernels` on any device, with results stored in the file `record`."""
    known = _read(record)
    fresh = [name for name in cases if name not in known]
    known |= {name: _problem(cases[name], device) for name in fresh}
    # Without the whole, its parts are used alone.
    unknown = [part for name in cases if known[name] for part in MADE_OF.get(name, ()) if part not in known]
    known |= {name: _problem(CASES[name], device) for name in unknown}
    if fresh or unknown:
        _write(record, known)
    _told.update(known)
    needed = {*cases, *(part for name in cases for part in MADE_OF.get(name, ()))}
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
        if name in needed
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
    except Exception as error:  # a compiler that fails, a launch that is refused
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:LONGEST_REASON]
    return ""


def record_of(device: torch.device) -> Path:
    """The file with the results for a kind of GPU."""
    import triton

    kind, _ = _kind(device)
    name = torch.cuda.get_device_properties(device).name
    parts = (kind, name, torch.__version__, triton.__version__, _sources())
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    return cache_root() / "kernels" / f"{kind}-{digest}.json"


def _kind(device: torch.device) -> tuple[str, str]:
    """A GPU's architecture, and Triton's version without its last number."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    return f"sm{properties.major}{properties.minor}", ".".join(triton.__version__.split(".")[:2])


@functools.cache
def _sources() -> str:
    """A hash of all sources of kernels."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*here.rglob("*.py"), *here.parent.glob("generation/cuda/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(record: Path) -> dict[str, str]:
    """The stored results; none if there is no file or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads(files.read_limited(record, LARGEST_RECORD))
        if isinstance(known, dict) and all(isinstance(problem, str) for problem in known.values()):
            return {name: problem[:LONGEST_REASON] for name, problem in known.items()}
    return {}


def _write(record: Path, known: Mapping[str, str]) -> None:
    """Store the results; if that fails, the next process checks again."""
    with contextlib.suppress(OSError):
        files.make_own_folder(record.parent)
        files.write_atomic(record, json.dumps(known, indent=1).encode())


def forget(names: Sequence[str] = ()) -> None:
    """Forget this process's results, for tests."""
    for name in names or list(_told):
        _told.pop(name, None)
    leave_out(name for name, problem in _told.items() if problem)
