"""The NVIDIA driver, queried through its own library (NVML, `nvidia-ml-py`), without torch.

The library exists wherever the driver does. It may hang with the driver, so don't call it from a thread that
somebody waits for without a limit.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class NvidiaDevice:
    """The driver's data on a visible device. Memory in bytes; `memory_free` is a snapshot."""

    name: str
    memory: int
    memory_free: int


def open_driver() -> ModuleType:
    """The initialized library. Raises some exception if there is no driver."""
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
    """The devices that CUDA_VISIBLE_DEVICES lets a program see; empty if it isn't set."""
    return [part for part in map(str.strip, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")) if part]


def device_handle(driver: Any, index: int, uuid: str = "") -> Any:
    """The driver's own handle of a visible device. Raises an exception of the library."""
    uuid, number = visible_device(index, uuid)
    return driver.nvmlDeviceGetHandleByUUID(uuid) if uuid else driver.nvmlDeviceGetHandleByIndex(number)


def visible_devices(seconds: float = 10.0) -> list[NvidiaDevice]:
    """The devices that a program sees, in its order; empty if the driver doesn't answer in time."""
    answer: list[NvidiaDevice] = []

    def ask() -> None:
        devices = []
        try:
            driver = open_driver()
            for index in range(len(_chosen()) or driver.nvmlDeviceGetCount()):
                handle = device_handle(driver, index)
                name, memory = driver.nvmlDeviceGetName(handle), driver.nvmlDeviceGetMemoryInfo(handle)
                devices.append(NvidiaDevice(str(name), int(memory.total), int(memory.free)))
        except Exception:  # whatever is wrong with a driver, its devices can't be listed
            return
        answer.extend(devices)

    thread = threading.Thread(target=ask, name="nvidia-devices", daemon=True)
    thread.start()
    thread.join(seconds)
    return list(answer)
