"""Everything the console knows about runs and asks of them. No widgets here.

All work that may wait for a disk or a process goes through `off_thread`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.schema import RunConfig
from core.errors import UserError
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.launch_options import LaunchOptions, Mode

if TYPE_CHECKING:
    from core.runs import CheckpointInfo, EventReader, Follower, Run, RunStatus
    from core.runs.history import RunHistory
    from core.runs.listing.run_list import RunList
    from mamba_tui.backend.history_zoom import Zoom
    from mamba_tui.backend.run_alerts import RunAlerts

EVENTS_A_SLICE = 1000
POLL_SECONDS = 0.2
LIVENESS_SECONDS = 1.0

ENDED = ("finished", "stopped", "failed", "died", "gone", "new")


@dataclass(frozen=True)
class RunRow:
    """A run and its status."""

    run: Run
    status: RunStatus

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint and its run."""

    run: Run
    info: CheckpointInfo
    latest: bool

    @property
    def key(self) -> str:
        """Its unique name."""
        return f"{self.run.name}/{self.info.step}"


def best_row(rows: Sequence[CheckpointRow], run_name: str) -> CheckpointRow | None:
    """The best checkpoint of a run."""
    from core.runs.checkpoints import choose_among

    own = sorted((row for row in rows if row.run.name == run_name), key=lambda row: row.info.step)
    best = choose_among([row.info for row in own])
    return next((row for row in own if row.info is best), None)


class RunClient:
    """The runs folder, the run being followed, and commands to it."""

    def __init__(self, options: LaunchOptions, alerts: RunAlerts | None = None) -> None:
        self.root = options.checkpoints
        self.read_only = options.read_only
        self.run: Run | None = None
        self.alerts = alerts
        self.zoom: Zoom | None = None
        self.alive = False
        self.starting = ""
        self.caught_up = False
        self.status: RunStatus | None = None
        self._follower: Follower | None = None
        self._runs: RunList | None = None
        self._row_cache: dict[str, tuple[tuple[Any, ...], RunRow]] = {}
        self._checkpoint_cache: dict[str, tuple[float, list[CheckpointInfo]]] = {}

    # ------------------------------------------------------------- follow

    def follow(self, run: Run) -> None:
        """Follow a run from the beginning of its history."""
        from core.runs import Follower

        self.run = run
        self._follower = Follower(run.events_path)
        self.zoom = None
        self.status = None
        self.alive = self.caught_up = False

    @property
    def history(self) -> RunHistory | None:
        """The followed run's events, folded."""
        return self._follower.history if self._follower else None

    @property
    def reader(self) -> EventReader | None:
        """How far the followed run's event file has been read."""
        return self._follower.reader if self._follower else None

    async def follow_for_ever(self, changed: Callable[[], None]) -> None:
        """Read the followed run's events, in slices so that the screen stays responsive."""
        loop = asyncio.get_running_loop()
        next_look = 0.0
        while True:
            busy = False
            if self.run is not None:
                busy = self.poll(changed)
                if loop.time() >= next_look:
                    next_look = loop.time() + LIVENESS_SECONDS
                    await self._look_for_life(changed)
            await asyncio.sleep(0.002 if busy else POLL_SECONDS)

    def poll(self, changed: Callable[[], None]) -> bool:
        """Read one slice of events; True if there is more to read at once."""
        follower = self._follower
        assert follower is not None
        history = follower.history
        events = follower.poll(EVENTS_A_SLICE)
        if self.zoom is not None:
            self.zoom.feed(events)
            if self.zoom.outdated or follower.history is not history:
                self.zoom = None
        before, self.caught_up = self.caught_up, len(events) < EVENTS_A_SLICE
        if self.alerts is not None and self.run is not None:
            self.alerts.take(self.run, events, live=before)
        if events or before != self.caught_up:
            changed()
        return bool(events) and follower.reader.behind > 0

    async def read_zoom(self, zoom: Zoom) -> bool:
        """Read a zoom's rows in a thread. Returns whether they arrived and are still wanted."""
        from mamba_tui.backend.history_zoom import part_of_file, read

        follower = self._follower
        assert follower is not None
        part = part_of_file(follower.history, zoom, follower.reader.offset)
        if part is None:
            zoom.give_up()
            return False
        try:
            table = await off_thread(read, follower.reader.path, *part)
        except OSError:
            zoom.give_up()
            return False
        # A trainer that started in the meantime undid steps; a replaced file has other steps.
        if self.zoom is not zoom:
            return False
        zoom.arrive(table)
        return True

    async def _look_for_life(self, changed: Callable[[], None]) -> None:
        from core.runs import is_alive, status

        run = self.run
        assert run is not None
        alive = is_alive(run)
        # A run that isn't alive is read with care: several files say why it ended.
        if alive != self.alive or (not alive and self.status is None):
            now = await off_thread(status, run)
            if run is self.run:
                if self.alive and now.state == "died" and self.alerts is not None:
                    self.alerts.died(run)
                self.alive, self.status = alive, now
                changed()

    @property
    def catching_up(self) -> float | None:
        """Share of the history read while a long one is being read, otherwise None."""
        if self.reader is None or self.reader.behind < 1 << 18 or not self.reader.size:
            return None
        return self.reader.offset / self.reader.size

    # --------------------------------------------------------------- lists

    @property
    def runs(self) -> RunList:
        """The summaries of all runs."""
        if self._runs is None:
            from core.runs.listing.run_list import RunList

            self._runs = RunList(self.root)
        return self._runs

    async def run_rows(self) -> list[RunRow]:
        """All runs, living ones first, then the newest."""
        rows = await off_thread(self._run_rows)
        return sorted(rows, key=lambda row: (not row.status.alive, row.status.age, row.name))

    def _run_rows(self) -> list[RunRow]:
        from core.runs import is_alive, list_runs, status

        rows = []
        for run in list_runs(self.root):
            signature = (_stamp(run.events_path), _stamp(run.path), is_alive(run))
            cached = self._row_cache.get(run.name)
            if cached is None or cached[0] != signature or cached[1].status.alive:
                cached = (signature, RunRow(run, status(run)))
                self._row_cache[run.name] = cached
            rows.append(cached[1])
        return rows

    async def checkpoint_rows(self) -> list[CheckpointRow]:
        """Every checkpoint of every run, newest first."""
        rows = await off_thread(self._checkpoint_rows)
        return sorted(rows, key=lambda row: -row.info.time)

    def _checkpoint_rows(self) -> list[CheckpointRow]:
        from core.runs import list_runs

        rows = []
        for run in list_runs(self.root):
            stamp = _stamp(run.path)
            cached = self._checkpoint_cache.get(run.name)
            if cached is None or cached[0] != stamp[0]:
                cached = (stamp[0], run.checkpoints())
                self._checkpoint_cache[run.name] = cached
            rows += [CheckpointRow(run, info, info is cached[1][-1]) for info in cached[1]]
        return rows

    async def default_checkpoint(self) -> CheckpointRow | None:
        """The checkpoint to use if none was chosen: the best of the followed run, or of the run that saved
        last.
        """
        rows = [row for row in await self.checkpoint_rows() if not row.info.problem]
        names = [row.run.name for row in rows]
        if not rows:
            return None
        name = self.run.name if self.run is not None and self.run.name in names else names[0]
        return best_row(rows, name)

    def forget_checkpoints(self) -> None:
        """Read the manifests again next time."""
        self._checkpoint_cache.clear()

    async def newest_run(self) -> RunRow | None:
        """The run to show if none was named: a living one, otherwise the newest."""
        rows = await self.run_rows()
        return rows[0] if rows else None

    # ------------------------------------------------------------- actions

    def _writable(self) -> None:
        if self.read_only:
            raise UserError("this console was opened with --read-only: it changes nothing")

    async def free_name(self, wanted: str | None) -> str:
        """The wanted run name, or the next unused one."""
        if wanted:
            return wanted
        from core.runs import next_run_name

        return await off_thread(next_run_name, self.root)

    async def start(self, config: RunConfig | None, name: str, mode: Mode) -> Run:
        """Prepare a run, start its trainer and follow it. Raises UserError."""
        self._writable()
        from core.config.preflight import check_possible
        from core.runs import Run, prepare_run, start_trainer

        def work() -> Run:
            known = Run(self.root / name)
            resuming = mode != "fresh" and known.exists
            check_possible(config if config is not None else known.config(), resuming=resuming)
            run = prepare_run(self.root, name, config, mode=mode)
            start_trainer(run)
            return run

        self.starting = name
        try:
            run = await off_thread(work)
        finally:
            self.starting = ""
        if self.run is None or self.run.path != run.path or mode == "fresh":
            self.follow(run)
        self.status = None
        return run

    async def command(self, command: str, **arguments: object) -> str:
        """Send a command to the followed run. Returns its id. Raises UserError."""
        self._writable()
        if self.run is None:
            raise UserError("no run is being followed; start one, or choose one from the runs list")
        from core.runs import send_command

        run = self.run
        return await off_thread(lambda: send_command(run, command, **arguments))


def _stamp(path: Path) -> tuple[float, int]:
    try:
        file = os.stat(path)
    except OSError:
        return (0.0, 0)
    return (file.st_mtime, file.st_size)
