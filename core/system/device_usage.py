"""How busy a run's device is, without torch and without delaying a step.

The driver of an NVIDIA device reports the share of the last sample period (up to a second) in which a kernel
was running (`nvmlDeviceGetUtilizationRates`). For a processor it is this process's processor time divided by
the elapsed time on the cores it may use.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from core.system.hardware import available_cores
from core.system.nvidia import device_handle, open_driver

ASK_SECONDS = 0.5
SHORTEST_SECONDS = 1e-3

Usage = Callable[[], "float | None"]


def device_usage(kind: str, index: int | None = None, uuid: str = "") -> Usage:
    """A function that returns how busy a device was since the last call: 0 to 1, or None if unknown.

    `kind` is torch's name of the device's type, `index` its number among the visible ones, `uuid` its
    identity if torch knows it.
    """
    if kind == "cpu":
        return ProcessorUsage()
    if kind == "cuda":
        return NvidiaUsage(index or 0, uuid)
    return lambda: None


class ProcessorUsage:
    """The share of the available cores' time that this process has used since the last call."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
        cores: int | None = None,
    ) -> None:
        self._clock, self._used = clock, used
        self._cores = cores or available_cores()
        self._since, self._before = clock(), used()
        self._value: float | None = None

    def __call__(self) -> float | None:
        """The share since the last call."""
        now, used = self._clock(), self._used()
        seconds = now - self._since
        if seconds < SHORTEST_SECONDS:  # too short to measure: repeat the last value
            return self._value
        share = (used - self._before) / (seconds * self._cores)
        self._since, self._before = now, used
        self._value = round(min(max(share, 0.0), 1.0), 4)
        return self._value


class NvidiaUsage:
    """The driver's last answer, updated by a thread at most every half second.

    A driver that fails once (no library, no such device, a slice of a divided device) isn't asked again.
    """

    def __init__(
        self,
        index: int,
        uuid: str = "",
        load: Callable[[], Any] = open_driver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index, self._uuid = index, uuid
        self._load, self._clock = load, clock
        self._driver: Any = None
        self._handle: Any = None
        self._asked = -ASK_SECONDS
        self._thread: threading.Thread | None = None
        self._broken = False
        self._value: float | None = None

    def __call__(self) -> float | None:
        """The latest value; never waits."""
        now = self._clock()
        waiting = self._thread is not None and self._thread.is_alive()
        if not self._broken and not waiting and now - self._asked >= ASK_SECONDS:
            self._asked = now
            thread = threading.Thread(target=self._ask, name="device-usage", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread available now: later
                thread.start()
                self._thread = thread
        return self._value

    def wait_for_answer(self, seconds: float = 10.0) -> None:
        """Wait for the question that is being asked."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _ask(self) -> None:
        try:
            if self._driver is None:
                driver = self._load()
                self._handle = device_handle(driver, self._index, self._uuid)
                self._driver = driver
            rates = self._driver.nvmlDeviceGetUtilizationRates(self._handle)
            self._value = min(rates.gpu, 100) / 100
        except Exception:  # whatever a driver does, training continues
            self._broken, self._value = True, None
