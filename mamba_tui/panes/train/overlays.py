"""Other runs drawn behind the followed one."""

from __future__ import annotations

from collections.abc import Sequence

from core.runs.history import RunHistory
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient


class Overlays:
    """The histories of the overlaid runs, by name."""

    def __init__(self, run_client: RunClient) -> None:
        self._run_client = run_client
        self.names: Sequence[str] = []
        self.histories: dict[str, RunHistory] = {}

    def wanted(self, names: Sequence[str]) -> Sequence[str] | None:
        """What to load if the user has chosen `names`; None if everything is loaded or being loaded."""
        followed = self._run_client.run
        names = [name for name in names if followed is None or name != followed.name]
        return None if names == self.names else names

    async def load(self, names: Sequence[str]) -> None:
        """Read these runs' histories, as much of each as a chart needs."""
        from core.runs import Run
        from core.runs.history import preview

        self.names = names
        histories = {}
        for name in names:
            histories[name] = await off_thread(preview, Run(self._run_client.root / name).events_path)
        self.histories = histories
