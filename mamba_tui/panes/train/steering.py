"""Steering a run from the Train pane: commands and their answers, stopping, resuming."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core.config.changes import replace
from core.config.schema import RunConfig
from core.errors import UserError
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.messages import RunStarted
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Prompt, Question
from mamba_tui.wording import state_of

if TYPE_CHECKING:
    from core.runs import Run

ANSWER_SECONDS = 20.0


class Steering:
    """Pauses, stops, resumes and asks things of the followed run."""

    def __init__(self, pane: Pane, session: RunClient) -> None:
        self._pane = pane
        self._session = session

    def can(self, action: str) -> bool:
        """Whether a key of Train makes sense now: those that steer need a run that can be steered."""
        session = self._session
        if action in ("pause", "stop", "command", "sample"):
            return not session.read_only and session.alive
        if action == "resume":
            return not session.read_only and session.run is not None and not session.alive
        return True

    async def pause(self) -> None:
        """Pause, or go on."""
        await self.command("resume" if state_of(self._session) == "paused" else "pause")

    async def command(self, command: str, **arguments: object) -> None:
        """Send a command and say what the trainer answers."""
        identity = await self._session.command(command, **arguments)
        history, waited = self._session.history, 0.0
        while history is not None and identity not in history.answers and waited < ANSWER_SECONDS:
            await asyncio.sleep(0.1)
            waited += 0.1
            history = self._session.history
        answer = history.answers.get(identity) if history is not None else None
        if answer is None:
            self._pane.say(f"{command}: the trainer has not answered yet; it looks at the end of its step")
        elif not answer.accepted:
            self._pane.say(f"{command} refused: {answer.message}", problem=True)
        else:
            self._pane.say(f"{command}: {answer.message or 'done'}")

    async def stop(self) -> None:
        """Save, then end."""
        run = self._session.run
        if run is None or not self._session.alive:
            return
        answer = await self._pane.ask(
            Question(
                "Stop",
                f"{run.name} saves a checkpoint and ends. It can be resumed from there with R.",
                [Answer("stop", "Save and stop", "primary"), Answer("no", "Let it train")],
            )
        )
        if answer == "stop":
            await self.command("stop")

    async def sample(self) -> None:
        """Ask for a sample."""
        prompt = await self._pane.ask(
            Prompt("Sample", "What the sample starts from; empty begins a document.", "")
        )
        if prompt is not None:
            await self.command("sample", prompt=prompt)

    async def resume(self) -> None:
        """Start an ended run again."""
        run, history = self._session.run, self._session.history
        if run is None or self._session.alive:
            return
        config = None
        if history is not None and history.max_iters and history.step >= history.max_iters:
            config = await self._longer(run)
            if config is None:
                return
        await self._session.start(config, run.name, "resume")
        self._pane.post_message(RunStarted(f"{run.name} goes on"))

    async def _longer(self, run: Run) -> RunConfig | None:
        """The run's configuration with more steps, for one that has done all of its own."""
        config = await off_thread(run.config)
        steps = config.training.max_iters
        answer = await self._pane.ask(
            Prompt("Resume", f"{run.name} has done its {steps:,} steps. Train up to step:", str(2 * steps))
        )
        if answer is None:
            return None
        if not answer.strip().isdecimal() or int(answer) <= steps:
            raise UserError(f"the last step is {answer!r}; accepted: a whole number above {steps}")
        return replace(config, max_iters=int(answer))
