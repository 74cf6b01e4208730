"""The devices of this machine, determined without torch, so that the console can ask too."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.system.nvidia import visible_devices


@dataclass(frozen=True)
class Device:
    """One device a run can use. Memory in bytes; `memory_free` is a snapshot."""

    name: str
    description: str
    memory: int
    memory_free: int


def has_cuda() -> bool:
    """Whether an NVIDIA device is visible. Checks files only: cheap enough for the first paint."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    return Path("/dev/dxg").exists() and shutil.which("nvidia-smi") is not None


def has_mps() -> bool:
    """Whether this is a Mac with Apple silicon, where torch offers the device `mps`."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def missing_devices() -> dict[str, str]:
    """The kinds of device that this machine doesn't have, with the reason; cheap."""
    reasons = {}
    if not has_cuda():
        reasons["cuda"] = "no NVIDIA device is visible"
    if not has_mps():
        reasons["mps"] = "only Macs with Apple silicon have it"
    return reasons


def resolve_device(name: str) -> str:
    """The device that `auto` stands for here, or `name` itself if this machine has it.

    Raises UserError for a name that is unknown or a device that is missing.
    """
    missing = missing_devices()
    available = [kind for kind in ("cpu", "cuda", "mps") if kind not in missing]
    if name == "auto":
        return available[-1]
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise UserError(f'device is "{name[:80]}"; accepted: auto, cpu, cuda, cuda:1 ..., mps')
    if name.partition(":")[0] not in available:
        raise UserError(
            f'device is "{name}", which this machine does not have ({missing[name.partition(":")[0]]}); '
            f"accepted here: auto, {', '.join(available)}"
        )
    if ":" in name and (count := len(cuda_devices())) and int(name.partition(":")[2]) >= count:
        raise UserError(
            f'device is "{name}", but this machine has {count} CUDA device{"s" * (count > 1)}, '
            f"counted from 0; accepted here: auto, {', '.join(available)}"
        )
    return name


def cuda_devices() -> list[Device]:
    """The NVIDIA devices that a program sees here, as the driver reports them; empty if it can't."""
    return [
        Device(f"cuda:{index}", device.name, device.memory, device.memory_free)
        for index, device in enumerate(visible_devices())
    ]


def available_cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computing_threads(configured: int) -> int:
    """How many threads torch uses on a CPU: as configured (0 = not), as OpenMP is told, or one per core."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return configured or (int(named) if named.isdecimal() and int(named) > 0 else available_cores())


def peak_process_memory() -> int:
    """The most memory that this process has used, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_device() -> Device:
    """The processor and its memory."""
    total, free = _host_memory()
    return Device("cpu", f"{os.cpu_count() or 1} cores", total, free)


def describe(device: str) -> Device:
    """The device behind a configuration's `device` key, with its memory. Raises UserError."""
    name = resolve_device(device)
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        devices = cuda_devices()
        if index < len(devices):
            return devices[index]
        return Device(name, "NVIDIA device", 0, 0)
    cpu = cpu_device()
    return cpu if name == "cpu" else Device("mps", "Apple silicon", cpu.memory, cpu.memory_free)


def _host_memory() -> tuple[int, int]:
    """Total and available bytes of host memory; zeros if the system doesn't say."""
    try:
        fields = dict(
            line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
        )
        total, free = (int(fields[key].split()[0]) << 10 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError, AttributeError):
            total = 0
        free = total
    limit = _container_limit()
    return (min(total, limit), min(free, limit)) if limit else (total, free)


def _container_limit() -> int:
    """The memory limit of a container's control group, 0 if there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        return limit if limit < 1 << 60 else 0
    return 0
