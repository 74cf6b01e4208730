"""Alerts: a run has finished, died, failed, diverged, no longer improves, or its disk is nearly full.

All of it is off until the user asks for it in `~/.config/mamba-tui/alerts.toml` (`$XDG_CONFIG_HOME`):

    bell = true                          # the terminal's bell
    notification = "osc9"                # or "osc777": what the terminal shows as a notification
    notify = "jq -r .message | mail me"  # a shell command; the alert comes as JSON on its input
    alerts = ["finished", "died"]        # which, if not all
    patience = 10                        # evaluations without improvement that are one alert

A command is never taken from a run's folder, which may come from anybody. The trainer itself runs
it, so it works for detached runs; only a death is told by who watches. Bell and notification come
from who shows the run in a terminal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.config.setting import show
from core.errors import UserError
from core.runs.events import EndEvent, ErrorEvent, EvaluationEvent, Event, StepEvent
from core.system.files import read_limited
from core.system.folders import config_root

KINDS = ("finished", "died", "failed", "diverged", "plateau", "disk")
NOTIFICATIONS = ("off", "osc9", "osc777")
DIVERGED_ADVICE = "lower learning_rate or raise warmup_iters, then resume"
LARGEST_FILE = 1 << 16
LONGEST_MESSAGE = 500
DISK_SECONDS = 60.0
DISK_BYTES = 1 << 30
# Below this, a better loss is noise.
SMALLEST_GAIN = 1e-3


@dataclass(frozen=True)
class Alert:
    """Something that a person who isn't watching wants to know. `kind` is one of KINDS."""

    kind: str
    run: str
    message: str
    step: int
    time: float


@dataclass(frozen=True)
class AlertSettings:
    """Which alerts the user wants, and how."""

    bell: bool = False
    notification: str = "off"
    notify: str = ""
    alerts: tuple[str, ...] = KINDS
    patience: int = 10


def settings_path() -> Path:
    """The file with the user's alert settings."""
    return config_root() / "alerts.toml"


def load_settings(path: Path | None = None) -> AlertSettings:
    """The user's alert settings; everything is off without the file. Raises UserError for a bad file."""
    path = path or settings_path()
    try:
        values = tomllib.loads(read_limited(path, LARGEST_FILE, follow_links=True).decode())
    except FileNotFoundError:
        return AlertSettings()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; accepted: TOML, such as bell = true") from None
    known = {item.name for item in fields(AlertSettings)}
    accepted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "bell": (lambda value: type(value) is bool, "true or false"),
        "notification": (lambda value: value in NOTIFICATIONS, " or ".join(map(show, NOTIFICATIONS))),
        "notify": (lambda value: isinstance(value, str) and "\0" not in value, "a shell command"),
        "alerts": (
            lambda value: isinstance(value, list) and all(one in KINDS for one in value),
            f"a list of {', '.join(map(show, KINDS))}",
        ),
        "patience": (lambda value: type(value) is int and 1 <= value <= 10**6, "a number from 1 to 1000000"),
    }
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{path}: {show(key)} is not known; accepted: {', '.join(sorted(known))}")
        good, words = accepted[key]
        if not good(value):
            raise UserError(f"{path}: {key} is {show(value)}; accepted: {words}")
    if "alerts" in values:
        values["alerts"] = tuple(values["alerts"])
    return AlertSettings(**values)


class AlertWatch:
    """Turns the events of a run into alerts; `tell` receives those that the user wants."""

    def __init__(
        self, run: str, folder: Path, settings: AlertSettings, tell: Callable[[Alert], object]
    ) -> None:
        self.run = run
        self.folder = folder
        self.settings = settings
        self.tell = tell
        self.step = 0
        self._best = math.inf
        self._without_gain = 0
        self._diverged = False
        self._looked = -math.inf
        self._disk_told = False

    def feed(self, event: Event) -> None:
        """Handle the next event."""
        if isinstance(event, StepEvent):
            self.step = event.step
            self._look_at_the_disk()
        elif isinstance(event, EvaluationEvent):
            self._evaluated(event)
        elif isinstance(event, ErrorEvent):
            self._diverged = event.advice == DIVERGED_ADVICE
        elif isinstance(event, EndEvent):
            self.step = event.step
            if event.reason == "finished":
                self.alert("finished", event.message)
            elif event.reason == "failed":
                self.alert("diverged" if self._diverged else "failed", event.message)

    def _evaluated(self, event: EvaluationEvent) -> None:
        if event.bits_per_byte < self._best - SMALLEST_GAIN:
            self._best, self._without_gain = event.bits_per_byte, 0
            return
        self._without_gain += 1
        if self._without_gain == self.settings.patience:
            self.alert(
                "plateau",
                f"no improvement in {self._without_gain} evaluations; best {self._best:.4f} bits/byte",
            )

    def _look_at_the_disk(self) -> None:
        now = time.monotonic()
        if now - self._looked < DISK_SECONDS:
            return
        self._looked = now
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.folder).free
            if free < DISK_BYTES and not self._disk_told:
                self.alert("disk", f"only {free / 1e6:,.0f} MB are free where the run is saved")
            self._disk_told = free < DISK_BYTES

    def alert(self, kind: str, message: str) -> None:
        """Send an alert if the user wants this kind."""
        if kind in self.settings.alerts:
            self.tell(Alert(kind, self.run, message[:LONGEST_MESSAGE], self.step, time.time()))


def run_command(alert: Alert, settings: AlertSettings) -> subprocess.Popen[bytes] | None:
    """Start the user's command with the alert as JSON on its input, without waiting for it."""
    if not settings.notify:
        return None
    try:
        child = subprocess.Popen(
            settings.notify,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=os.path.expanduser("~"),
        )
    except OSError:
        return None
    assert child.stdin is not None
    with contextlib.suppress(OSError):  # the command reads no input; a few hundred bytes never block
        child.stdin.write(json.dumps(asdict(alert)).encode() + b"\n")
        child.stdin.close()
    return child


def terminal_sequence(alert: Alert, settings: AlertSettings) -> str:
    """The characters that make a terminal ring or show a notification; "" if the user wants neither."""
    text = "".join(c if c.isprintable() else " " for c in f"{alert.run} {alert.kind}: {alert.message}")
    bell = "\a" if settings.bell else ""
    if settings.notification == "osc9":
        return f"\x1b]9;{text}\x1b\\{bell}"
    if settings.notification == "osc777":
        return f"\x1b]777;notify;mamba-tui;{text.replace(';', ',')}\x1b\\{bell}"
    return bell
