"""How busy the device of a run is, asked without torch and without holding a step up.

An NVIDIA device is asked through the driver's own library (NVML, `libnvidia-ml.so.1`), which is there
wherever the driver is; the documentation of `nvmlDeviceGetUtilizationRates` says what it counts: the
share of the last sample period (up to a second) in which a kernel was running. A processor's share is
this process's processor time against the time that passed on the cores it may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
ASK_SECONDS = 0.5
SHORTEST_SECONDS = 1e-3

Usage = Callable[[], "float | None"]


def device_usage(kind: str, index: int | None = None, uuid: str = "") -> Usage:
    """A function that tells how busy a device was since it was last asked: 0 to 1, None when not known.

    `kind` is torch's name of the device's type, `index` its number among the visible ones, `uuid` its
    identity where torch knows it.
    """
    if kind == "cpu":
        return ProcessorUsage()
    if kind == "cuda":
        return NvidiaUsage(index or 0, uuid)
    return lambda: None


class ProcessorUsage:
    """The share of the cores this process may use that it did use since it was last asked."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
        cores: int | None = None,
    ) -> None:
        self._clock, self._used = clock, used
        self._cores = cores or allowed_cores()
        self._since, self._before = clock(), used()
        self._value: float | None = None

    def __call__(self) -> float | None:
        """The share since the last call."""
        now, used = self._clock(), self._used()
        seconds = now - self._since
        if seconds < SHORTEST_SECONDS:  # too short to tell: what was true a moment ago
            return self._value
        share = (used - self._before) / (seconds * self._cores)
        self._since, self._before = now, used
        self._value = round(min(max(share, 0.0), 1.0), 4)
        return self._value


class NvidiaUsage:
    """What the driver last said, asked anew in a thread of its own at most every half second.

    A driver that cannot say it once (no library, no such device, a slice of a divided device) is not
    asked again.
    """

    def __init__(
        self,
        index: int,
        uuid: str = "",
        load: Callable[[str], Any] = ctypes.CDLL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._uuid = index, uuid
        self._load, self._clock = load, clock
        self._library: Any = None
        self._handle = ctypes.c_void_p()
        self._asked = -ASK_SECONDS
        self._thread: threading.Thread | None = None
        self._broken = False
        self._value: float | None = None

    def __call__(self) -> float | None:
        """What is known now; never waits."""
        now = self._clock()
        waiting = self._thread is not None and self._thread.is_alive()
        if not self._broken and not waiting and now - self._asked >= ASK_SECONDS:
            self._asked = now
            thread = threading.Thread(target=self._ask, name="device-usage", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread to be had now: later
                thread.start()
                self._thread = thread
        return self._value

    def settle(self, seconds: float = 10.0) -> None:
        """Wait for the question that is under way."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _ask(self) -> None:
        try:
            if self._library is None:
                self._open()
            rates = _Rates()
            _check(self._library.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(rates)))
            self._value = min(rates.gpu, 100) / 100
        except Exception:  # whatever a driver does, training goes on
            self._broken, self._value = True, None

    def _open(self) -> None:
        library = self._load(LIBRARY)
        _check(library.nvmlInit_v2())
        handle = ctypes.byref(self._handle)
        uuid, number = visible_device(self._index, self._uuid)
        if uuid:
            _check(library.nvmlDeviceGetHandleByUUID(uuid.encode(), handle))
        else:
            _check(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), handle))
        self._library = library


class _Rates(ctypes.Structure):
    """`nvmlUtilization_t`: per cent of the time that kernels ran, and that memory was accessed."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def _check(code: int) -> None:
    if code:
        raise OSError(f"NVML answers {code}")


def visible_device(index: int, uuid: str = "") -> tuple[str, int]:
    """(identity, number) by which the driver knows a visible device; one of the two counts."""
    if uuid:
        return (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"), index
    chosen = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    name = chosen[index] if index < len(chosen) else ""
    if name.startswith(("GPU-", "MIG-")):
        return name, index
    return "", int(name) if name.isdecimal() else index


def allowed_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
