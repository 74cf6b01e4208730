"""Many runs from Configure: a sweep of its configuration."""

from __future__ import annotations

from functools import partial

from core.errors import UserError
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.run_estimate import Survey
from mamba_tui.backend.sweeps import start_sweep
from mamba_tui.document import Document
from mamba_tui.messages import RunsQueued
from mamba_tui.panes.base import Pane
from mamba_tui.panes.configure.next_run import NextRun
from mamba_tui.widgets.dialogs import Answer, Question


class Sweep:
    """Asks for a sweep and starts its queue. What was typed is kept until the sweep has started."""

    def __init__(self, pane: Pane, document: Document, run_client: RunClient, next_run: NextRun) -> None:
        self._pane = pane
        self._document = document
        self._run_client = run_client
        self._next_run = next_run
        self._typed: dict[str, str] = {}
        self._prune = False

    async def ask_and_start(self, known: Survey) -> None:
        """Ask until the sweep has started or the dialog is closed."""
        reason = self._next_run.reason_against()
        if reason:
            self._pane.say(reason, problem=True)
            return
        while not await self._try(known):
            pass

    async def _try(self, known: Survey) -> bool:
        """Ask once; False if it didn't start and should be asked again."""
        from core.sweeps.plan import common_tag
        from mamba_tui.panes.configure.sweep_dialog import START, SweepDialog
        from mamba_tui.panes.configure.sweep_size import sweep_size

        config = self._document.config
        dialog = SweepDialog(self._typed, self._prune, partial(sweep_size, config, known=known))
        answer = await self._pane.ask(dialog)
        self._typed, self._prune = dialog.values, dialog.prune
        if answer != START:
            return True
        try:
            if not await self._next_run.has_text():
                return False
            tag = await off_thread(start_sweep, self._run_client.root, config, dialog.options())
        except UserError as error:
            await self._pane.ask(Question("Not started", str(error), [Answer("ok", "OK")]))
            return False
        self._typed = {}
        sentence = f"{tag} trains in the background, even if the console is closed."
        self._pane.post_message(RunsQueued(f"tags={common_tag(tag)}", sentence))
        return True
