"""Steering a run from the Train pane: commands and their answers, stopping, resuming."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core.config.changes import replace
from core.config.schema import RunConfig
from core.errors import UserError
from mamba_tui.backend.run_client import Session, off_thread
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Prompt, Question
from mamba_tui.wording import state_of

if TYPE_CHECKING:
    from core.runs import Run

ANSWER_SECONDS = 20.0


class TrainSteering(Pane):
    """The keys that change a run."""

    session: Session

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that steer need a run that can be steered."""
        if action in ("pause", "stop", "command", "sample"):
            return not self.session.read_only and self.session.alive
        if action == "resume":
            return not self.session.read_only and self.session.run is not None and not self.session.alive
        return True

    def action_pause(self) -> None:
        """Pause, or go on."""
        self.action_command("resume" if state_of(self.session) == "paused" else "pause")

    def action_command(self, command: str) -> None:
        """Send a command."""
        self.work(self._command(command), f"command-{command}")

    async def _command(self, command: str, **arguments: object) -> None:
        identity = await self.session.command(command, **arguments)
        history, waited = self.session.history, 0.0
        while history is not None and identity not in history.answers and waited < ANSWER_SECONDS:
            await asyncio.sleep(0.1)
            waited += 0.1
            history = self.session.history
        answer = history.answers.get(identity) if history is not None else None
        if answer is None:
            self.console.say(f"{command}: the trainer has not answered yet; it looks at the end of its step")
        elif not answer.get("accepted"):
            self.console.say(f"{command} refused: {answer.get('message')}", problem=True)
        else:
            self.console.say(f"{command}: {answer.get('message') or 'done'}")

    def action_stop(self) -> None:
        """Save, then end."""
        if self.session.alive:
            self.work(self._stop(), "stop")

    async def _stop(self) -> None:
        run = self.session.run
        assert run is not None
        answer = await self.app.push_screen_wait(
            Question(
                "Stop",
                f"{run.name} saves a checkpoint and ends. It can be resumed from there with R.",
                [Answer("stop", "Save and stop", "primary"), Answer("no", "Let it train")],
            )
        )
        if answer == "stop":
            await self._command("stop")

    def action_sample(self) -> None:
        """Ask for a sample."""
        self.work(self._sample(), "sample")

    async def _sample(self) -> None:
        prompt = await self.app.push_screen_wait(
            Prompt("Sample", "What the sample starts from; empty begins a document.", "")
        )
        if prompt is not None:
            await self._command("sample", prompt=prompt)

    def action_resume(self) -> None:
        """Start an ended run again."""
        self.work(self._resume(), "start")

    async def _resume(self) -> None:
        run, history = self.session.run, self.session.history
        if run is None or self.session.alive:
            return
        config = None
        if history is not None and history.max_iters and history.step >= history.max_iters:
            config = await self._longer(run)
            if config is None:
                return
        await self.session.start(config, run.name, "resume")
        self.console.say(f"{run.name} goes on")

    async def _longer(self, run: Run) -> RunConfig | None:
        """The run's configuration with more steps, for one that has done all of its own."""
        config = await off_thread(run.config)
        steps = config.training.max_iters
        answer = await self.app.push_screen_wait(
            Prompt("Resume", f"{run.name} has done its {steps:,} steps. Train up to step:", str(2 * steps))
        )
        if answer is None:
            return None
        if not answer.strip().isdecimal() or int(answer) <= steps:
            raise UserError(f"the last step is {answer!r}; accepted: a whole number above {steps}")
        return replace(config, max_iters=int(answer))
