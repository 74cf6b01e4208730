"""Controlling a run from the Train pane: commands and their answers, stopping, resuming."""

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
from mamba_tui.wording import COMMAND_NAMES, command_sentence, state_of

if TYPE_CHECKING:
    from core.runs import Run

ANSWER_SECONDS = 20.0


class Steering:
    """Pauses, stops, resumes the followed run, and sends it commands."""

    def __init__(self, pane: Pane, run_client: RunClient) -> None:
        self._pane = pane
        self._run_client = run_client

    def can(self, action: str) -> bool:
        """Whether a key of Train makes sense now: most need a run that is alive."""
        run_client = self._run_client
        if action == "finish" and run_client.history is not None and run_client.history.cooling_down:
            return False
        if action in ("pause", "stop", "finish", "command", "sample"):
            return not run_client.read_only and run_client.alive
        if action == "resume":
            return not run_client.read_only and run_client.run is not None and not run_client.alive
        return True

    async def pause(self) -> None:
        """Pause, or continue."""
        await self.command("resume" if state_of(self._run_client) == "paused" else "pause")

    async def command(self, command: str, **arguments: object) -> None:
        """Send a command and show the trainer's answer."""
        identity = await self._run_client.command(command, **arguments)
        history, waited = self._run_client.history, 0.0
        while history is not None and identity not in history.answers and waited < ANSWER_SECONDS:
            await asyncio.sleep(0.1)
            waited += 0.1
            history = self._run_client.history
        answer = history.answers.get(identity) if history is not None else None
        if answer is None:
            name = COMMAND_NAMES.get(command, command)
            self._pane.say(f"{name}: no answer yet. The trainer answers at the end of its step.")
        else:
            refused = not answer.accepted
            self._pane.say(command_sentence(command, refused, answer.message), problem=refused)

    async def stop(self) -> None:
        """Save, then end."""
        run = self._run_client.run
        if run is None or not self._run_client.alive:
            return
        answer = await self._pane.ask(
            Question(
                "Stop",
                f"{run.name} saves a checkpoint and stops. R resumes it from there.",
                [Answer("no", "Cancel"), Answer("stop", "Save and stop", "primary")],
            )
        )
        if answer == "stop":
            await self.command("stop")

    async def finish(self) -> None:
        """End well: cool the learning rate down, evaluate, save."""
        run = self._run_client.run
        if run is None or not self._run_client.alive:
            return
        answer = await self._pane.ask(
            Question(
                "Finish",
                f"{run.name} cools its learning rate down over its last steps, evaluates, saves and ends.",
                [Answer("no", "Cancel"), Answer("finish", "Cool down and end", "primary")],
            )
        )
        if answer == "finish":
            await self.command("finish")

    async def sample(self) -> None:
        """Ask for a sample."""
        prompt = await self._pane.ask(
            Prompt("Sample", "How the sample begins; leave it empty to start a new document.", "")
        )
        if prompt is not None:
            await self.command("sample", prompt=prompt)

    async def resume(self) -> None:
        """Resume a run that has ended."""
        run, history = self._run_client.run, self._run_client.history
        if run is None or self._run_client.alive:
            return
        config = None
        if history is not None and history.max_iters and history.step >= history.max_iters:
            config = await self._longer(run)
            if config is None:
                return
        await self._run_client.start(config, run.name, "resume")
        self._pane.post_message(RunStarted(f"{run.name} resumed"))

    async def _longer(self, run: Run) -> RunConfig | None:
        """The configuration with more steps, for a run that has finished all of its steps."""
        config = await off_thread(run.config)
        steps = config.training.max_iters
        answer = await self._pane.ask(
            Prompt(
                "Resume", f"{run.name} has finished its {steps:,} steps. Train up to step:", str(2 * steps)
            )
        )
        if answer is None:
            return None
        if not answer.strip().isdecimal() or int(answer) <= steps:
            raise UserError(f"the last step is {answer!r}; use a whole number above {steps}")
        return replace(config, max_iters=int(answer))
