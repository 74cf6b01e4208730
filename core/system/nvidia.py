"""The NVIDIA driver, asked through its own library (NVML, `nvidia-ml-py`), without torch.

The library is there wherever the driver is. It may hang with the driver: nothing here is for a thread
that somebody waits for without a limit.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class NvidiaDevice:
    """What the driver says of a visible device. Memory in bytes; `memory_free` is a snapshot."""

    name: str
    memory: int
    memory_free: int


def open_driver() -> ModuleType:
    """The library, ready to be asked. Raises some exception where there is no driver."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def visible_device(index: int, uuid: str = "") -> tuple[str, int]:
    """(identity, number) by which the driver knows a visible device; one of the two counts."""
    if uuid:
        return (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"), index
    chosen = _chosen()
    name = chosen[index] if index < len(chosen) else ""
    if name.startswith(("GPU-", "MIG-")):
        return name, index
    return "", int(name) if name.isdecimal() else index


def _chosen() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lets a program see; empty where it says nothing."""
    return [part for part in map(str.strip, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) if part]


def device_handle(driver: Any, index: int, uuid: str = "") -> Any:
    """The driver's own handle of a visible device. Raises an exception of the library."""
    uuid, number = visible_device(index, uuid)
    return driver.nvmlDeviceGetHandleByUUID(uuid) if uuid else driver.nvmlDeviceGetHandleByIndex(number)


def visible_devices(seconds: float = 10.0) -> list[NvidiaDevice]:
    """The devices that a program sees, in its order; empty where the driver cannot say so in time."""
    answer: list[NvidiaDevice] = []

    def ask() -> None:
        devices = []
        try:
            driver = open_driver()
            for index in range(len(_chosen()) or driver.nvmlDeviceGetCount()):
                handle = device_handle(driver, index)
                name, memory = driver.nvmlDeviceGetName(handle), driver.nvmlDeviceGetMemoryInfo(handle)
                devices.append(NvidiaDevice(str(name), int(memory.total), int(memory.free)))
        except Exception:  # whatever is wrong with a driver, its devices cannot be told
            return
        answer.extend(devices)

    thread = threading.Thread(target=ask, name="nvidia-devices", daemon=True)
    thread.start()
    thread.join(seconds)
    return list(answer)
