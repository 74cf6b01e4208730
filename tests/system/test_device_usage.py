"""How busy a device is: asked of a driver made of Python, and of the processor by a clock that is set."""

import os
import threading
from types import SimpleNamespace

import pytest

from core.system.device_usage import (
    ASK_SECONDS,
    NvidiaUsage,
    ProcessorUsage,
    device_usage,
)
from core.system.hardware import cuda_devices
from core.system.nvidia import visible_device, visible_devices


class Driver:
    """The functions of NVIDIA's binding, with a device that is as busy as `busy` says."""

    def __init__(self, busy=37, fails=""):
        self.busy, self.fails = busy, fails
        self.calls = []
        self.held = threading.Event()
        self.held.set()

    def __call__(self):
        self._note("init")
        return self

    def _note(self, name, *details):
        self.calls.append((name, *details))
        if self.fails == name:
            raise RuntimeError("NVML Error")

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self._note("uuid", uuid)
        return uuid

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        self._note("index", number)
        return number

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        assert self.held.wait(240)
        self._note("rates")
        return SimpleNamespace(gpu=self.busy, memory=1)

    def nvmlDeviceGetCount(self):  # noqa: N802
        self._note("count")
        return 3

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return f"card {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        assert self.held.wait(240)
        return SimpleNamespace(total=80 << 30, free=70 << 30)


def usage_of(driver, now, uuid="", index=0):
    return NvidiaUsage(index, uuid, load=driver, clock=lambda: now[0])


def test_the_driver_is_asked_twice_a_second_at_most(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver, now = Driver(), [100.0]
    usage = usage_of(driver, now, "12-34")
    usage()
    usage.wait_for_answer()
    for _ in range(50):
        assert usage() == 0.37
        now[0] += 0.01
    driver.busy = 250
    now[0] = 100.0 + ASK_SECONDS
    usage()
    usage.wait_for_answer()
    assert usage() == 1.0
    assert [name for name, *_ in driver.calls] == ["init", "uuid", "rates", "rates"]
    assert driver.calls[1] == ("uuid", "GPU-12-34")


def test_a_driver_that_hangs_holds_nobody_up():
    driver, now = Driver(), [0.0]
    driver.held.clear()
    usage = usage_of(driver, now)
    for _ in range(5):
        assert usage() is None
        now[0] += 1
    assert threading.active_count() < 50
    assert len([thread for thread in threading.enumerate() if thread.name == "device-usage"]) == 1
    driver.held.set()
    usage.wait_for_answer()
    assert usage() == 0.37
    usage.wait_for_answer()


@pytest.mark.parametrize("fails", ["init", "uuid", "rates"])
def test_a_driver_that_cannot_tell_is_left_alone(fails):
    driver, now = Driver(fails=fails), [0.0]
    usage = usage_of(driver, now, "a")
    for _ in range(4):
        assert usage() is None
        usage.wait_for_answer()
        now[0] += 1
    assert len(driver.calls) <= 3


def test_a_driver_that_stops_telling_is_not_believed_any_more():
    driver, now = Driver(), [0.0]
    usage = usage_of(driver, now)
    usage()
    usage.wait_for_answer()
    assert usage() == 0.37
    driver.fails = "rates"
    now[0] += 1
    usage()
    usage.wait_for_answer()
    assert usage() is None


@pytest.mark.parametrize(
    ("visible", "index", "uuid", "expected"),
    [
        (None, 1, "", ("", 1)),
        ("3,5", 1, "", ("", 5)),
        (" 3 , 5 ", 0, "", ("", 3)),
        ("3", 1, "", ("", 1)),
        ("GPU-abc,GPU-def", 1, "", ("GPU-def", 1)),
        ("MIG-abc", 0, "", ("MIG-abc", 0)),
        ("3,5", 1, "abc", ("GPU-abc", 1)),
    ],
)
def test_the_driver_is_told_the_device_by_its_own_name(monkeypatch, visible, index, uuid, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_device(index, uuid) == expected


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["card 0", "card 1", "card 2"]),
        ("2,0", ["card 2", "card 0"]),
        ("GPU-abc", ["card GPU-abc"]),
    ],
)
def test_devices_are_those_that_a_program_sees_in_its_order(monkeypatch, visible, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("core.system.nvidia.open_driver", Driver())
    devices = cuda_devices()
    assert [device.description for device in devices] == names
    assert [device.name for device in devices] == [f"cuda:{index}" for index in range(len(names))]
    assert (devices[0].memory, devices[0].memory_free) == (80 << 30, 70 << 30)


@pytest.mark.parametrize("fails", ["init", "count", "index"])
def test_where_the_driver_cannot_say_there_are_no_devices(monkeypatch, fails):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("core.system.nvidia.open_driver", Driver(fails=fails))
    assert visible_devices() == []


def test_devices_of_a_driver_that_hangs_are_not_waited_for(monkeypatch):
    driver = Driver()
    driver.held.clear()
    monkeypatch.setattr("core.system.nvidia.open_driver", driver)
    assert visible_devices(seconds=0.01) == []
    driver.held.set()


def test_nothing_is_asked_of_a_machine_without_a_driver():
    """NVIDIA's own binding, on whatever machine this is: an answer, and no exception."""
    assert all(device.memory >= device.memory_free >= 0 for device in visible_devices())


def test_the_processor_is_as_busy_as_its_time_says():
    now, used = [10.0], [2.0]
    usage = ProcessorUsage(lambda: now[0], lambda: used[0], cores=4)
    now[0], used[0] = 11.0, 4.0
    assert usage() == 0.5
    now[0] += 1e-4
    used[0] += 1.0
    assert usage() == 0.5, "an instant tells nothing"
    now[0] += 1.0
    assert usage() == pytest.approx(0.25, abs=1e-3)
    now[0], used[0] = 13.0, 100.0
    assert usage() == 1.0
    now[0], used[0] = 14.0, 90.0
    assert usage() == 0.0


def test_this_processor_tells():
    usage = device_usage("cpu")
    end = os.times().elapsed + 0.05
    while os.times().elapsed < end:
        pass
    assert 0 < usage() <= 1
    assert device_usage("mps")() is None
