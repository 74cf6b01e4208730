"""Gathers steps into events: a thousand steps per second must not become a thousand lines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from core.runs.event_file import EventWriter
from core.runs.events import StepEvent

EVENT_SECONDS = 0.1


class StepMeter:
    """Writes at most one `step` event per `interval` seconds; the first step's at once."""

    def __init__(
        self,
        writer: EventWriter,
        tokens_per_step: int,
        *,
        tokens: int = 0,
        interval: float = EVENT_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
        device_memory: Callable[[], int | None] = lambda: None,
        device_utilization: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.tokens = tokens
        self._writer = writer
        self._tokens_per_step = tokens_per_step
        self._interval = interval
        self._clock = clock
        self._device_memory = device_memory
        self._device_utilization = device_utilization
        self._last_written = -math.inf
        self._clear()
        self.restart()

    def _clear(self) -> None:
        self._losses: list[float] = []
        self._norm = 0.0
        self._waited = 0.0
        self._newest: tuple[int, float, float] = (0, 0.0, 0.0)

    def restart(self) -> None:
        """Restart the clock for the next steps: time spent in between (an evaluation) doesn't count."""
        self._began = self._clock()
        self._device_utilization()  # discard it, because it covers the time since the last call

    @property
    def due(self) -> bool:
        """True if it is time to write."""
        return self._clock() - self._last_written >= self._interval

    def add(
        self,
        *,
        step: int,
        loss: float,
        gradient_norm: float,
        learning_rate: float,
        waited: float,
        epoch: float,
    ) -> None:
        """Count one optimizer step; `waited` are the seconds it waited for data."""
        self._losses.append(loss)
        # The largest of several, so that a spike isn't averaged away. `not <=` makes NaN win.
        if not gradient_norm <= self._norm and not math.isnan(self._norm):
            self._norm = gradient_norm
        self._waited += waited
        self._newest = (step, learning_rate, epoch)
        self.tokens += self._tokens_per_step
        if self._interval <= 0:  # every step separately, even if their numbers arrived together
            self.flush()

    def flush_if_due(self) -> None:
        """Write if it is time. Call it once for steps whose numbers arrived together."""
        if self.due:
            self.flush()

    def flush(self) -> None:
        """Write everything since the last event: before a save, an evaluation, an end."""
        if not self._losses:
            return
        now = self._clock()
        seconds = max(now - self._began, 1e-9)
        step, learning_rate, epoch = self._newest
        count = len(self._losses)
        finite = all(map(math.isfinite, self._losses))
        mean = math.fsum(self._losses) / count if finite else math.nan
        self._writer.write(
            StepEvent(
                step=step,
                steps=count,
                loss=mean if count > 1 else self._losses[0],
                loss_min=min(self._losses),
                loss_max=max(self._losses),
                learning_rate=learning_rate,
                gradient_norm=self._norm,
                tokens_per_second=round(count * self._tokens_per_step / seconds, 1),
                tokens=self.tokens,
                data_wait=round(min(1.0, self._waited / seconds), 4),
                device_memory=self._device_memory(),
                device_utilization=self._device_utilization(),
                epoch=round(epoch, 4),
            )
        )
        self._last_written = now
        self._clear()
        self.restart()
