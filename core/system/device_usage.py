"""How busy the device of a run is, asked without torch and without holding a step up.

Of an NVIDIA device the driver tells the share of the last sample period (up to a second) in which a
kernel was running (`nvmlDeviceGetUtilizationRates`). A processor's share is this process's processor
time against the time that passed on the cores it may use.
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
        self._cores = cores or available_cores()
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

    def wait_for_answer(self, seconds: float = 10.0) -> None:
        """Wait for the question that is under way."""
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
        except Exception:  # whatever a driver does, training goes on
            self._broken, self._value = True, None
