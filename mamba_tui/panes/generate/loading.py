"""Which checkpoints Generate has loaded, and whether their runs have better or newer ones now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.errors import UserError
from core.system.json_lines_client import AsyncClient
from mamba_tui.backend.run_client import CheckpointRow, RunClient, best_row
from mamba_tui.panes.base import Pane
from mamba_tui.panes.checkpoint_choices import checkpoint_choices, checkpoint_name
from mamba_tui.panes.generate.side import Side
from mamba_tui.widgets.dialogs import Choice
from mamba_tui.widgets.numbers import loss

NOTHING = "no run has saved a checkpoint yet; in Train, c saves one"
MOST_OFFERED = 1000


class Loading:
    """Loads checkpoints into the sides, automatically or by choice."""

    def __init__(self, pane: Pane, run_client: RunClient, client: AsyncClient, sides: Sequence[Side]) -> None:
        self._pane = pane
        self._run_client = run_client
        self._client = client
        self._sides = sides
        self._lock = asyncio.Lock()
        self.offered = ""
        """The checkpoint that was announced last, by its key."""

    async def load(self, row: CheckpointRow, slot: int) -> None:
        """Load a checkpoint into a side."""
        side = self._sides[slot]
        side.loading(checkpoint_name(row))
        side.row = row
        side.load_request = await self._client.send(
            "load", checkpoint=str(row.info.path), slot=slot, device="auto"
        )

    async def load_default(self, slot: int, *, again: bool = False) -> None:
        """Load the best checkpoint of the followed run if none is loaded.

        With `again`, also if another one was loaded that nobody chose. Raises UserError if there is none.
        """
        async with self._lock:
            side = self._sides[slot]
            if side.name and not (again and side.automatic):
                return
            row = await self._run_client.default_checkpoint()
            if row is None:
                if side.name:
                    return
                raise UserError(NOTHING)
            if side.name and side.row is not None and side.row.key == row.key:
                return
            await self.load(row, slot)
            side.automatic = True

    async def warm_up(self) -> None:
        """Load what Enter would use, so that its first token comes at once."""
        if not self._sides[0].name and await self._run_client.default_checkpoint() is not None:
            await self.load_default(0)

    async def choose(self, slot: int) -> bool:
        """Ask for the checkpoint of a side. Returns whether one was chosen. The announced one comes first."""
        rows = [row for row in await self._run_client.checkpoint_rows() if not row.info.problem]
        if not rows:
            raise UserError(NOTHING)
        rows.sort(key=lambda row: row.key != self.offered)
        key = await self._pane.ask(Choice("Checkpoint", checkpoint_choices(rows)))
        chosen = next((row for row in rows if row.key == key), None)
        if chosen is None:
            return False
        await self.load(chosen, slot)
        self._sides[slot].automatic = False
        return True

    async def news(self) -> str:
        """A saved checkpoint of the first side's run that is better, or else newer, than the loaded one."""
        loaded = self._sides[0].row
        if loaded is None or not self._sides[0].name:
            return ""
        rows = [row for row in await self._run_client.checkpoint_rows() if row.run.name == loaded.run.name]
        best = best_row([row for row in rows if not row.info.problem], loaded.run.name)
        newest = max(rows, key=lambda row: row.info.step, default=None)
        for word, row in (("better", best), ("newer", newest)):
            if row is not None and not row.info.problem and row.info.step > loaded.info.step:
                self.offered = row.key
                value = row.info.validation_loss
                measured = f", validation {loss(value)}" if value is not None else ""
                return f"{word}: step {row.info.step:,}{measured} (Ctrl+L)"
        return ""
