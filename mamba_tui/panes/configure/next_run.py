"""The run that Start creates: its name, what prevents it, and what must be asked first."""

from __future__ import annotations

from core.errors import UserError
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.sweeps import runs_to_wait_for, start_after
from mamba_tui.document import Document
from mamba_tui.launch_options import LaunchOptions, Mode
from mamba_tui.messages import RunsQueued, RunStarted, RunStateChanged
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Choice, Prompt, Question

NOW, AFTER = "now", "after"


class NextRun:
    """Starts a run with the document's configuration."""

    def __init__(self, pane: Pane, document: Document, run_client: RunClient, options: LaunchOptions) -> None:
        self._pane = pane
        self._document = document
        self._run_client = run_client
        self.name = options.run_name
        self.mode: Mode = options.mode

    def reason_against(self) -> str:
        """Why no run can be started now; "" if one can."""
        if self._run_client.read_only:
            return "read-only: runs can't be started here"
        if self._run_client.starting:
            return f"{self._run_client.starting} is starting ..."
        count = len(self._document.problems)
        if count:
            return f"{count} invalid value{'s' if count > 1 else ''}, marked above"
        return ""

    async def ask_for_name(self) -> None:
        """Name it."""
        from core.runs import check_name

        free = await self._run_client.free_name(self.name)
        answer = await self._pane.ask(
            Prompt("Name of the run", f"The run gets a folder of this name in {self._run_client.root}", free)
        )
        if answer is not None:
            if answer.strip():
                check_name(answer.strip())
            self.name = answer.strip() or None

    async def start(self) -> None:
        """Check, ask what must be asked, and start."""
        reason = self.reason_against()
        if reason:
            self._pane.say(reason, problem=True)
            return
        try:
            if not await self.has_text():
                return
            when = await self._when()
            if when == AFTER:
                assert self._run_client.run is not None
                await self.start_after(self._run_client.run.name)
            if when != NOW:
                return
            name = await self._run_client.free_name(self.name)
            self._pane.post_message(RunStateChanged())
            run = await self._run_client.start(self._document.config, name, self.mode)
        except UserError as error:
            await self._pane.ask(Question("Not started", str(error), [Answer("ok", "OK")]))
            return
        self._begun()
        self._pane.post_message(
            RunStarted(f"{run.name} started. It keeps training when the console is closed.")
        )

    async def has_text(self) -> bool:
        """Whether there is text to learn from; where there is none, the sample text is offered."""
        from core.data.sample_corpus import has_texts, no_text, write_sample

        folder = self._document.config.data.dataset_dir
        if await off_thread(has_texts, folder):
            return True
        if await off_thread(self._resumes):  # another text would spoil what the run has learned
            raise UserError(no_text(folder))
        answer = await self._pane.ask(
            Question(
                "No text yet",
                f"There is no .txt file in {folder}. mamba-tui can write a sample there to learn from: the "
                "Python language reference that comes with this Python, about 0.5 MB. Nothing is downloaded.",
                [Answer("no", "Cancel"), Answer("sample", "Write the sample and start", "success")],
            )
        )
        if answer != "sample":
            return False
        await off_thread(write_sample, folder)
        self._pane.say(f"Sample text written to {folder}")
        return True

    def _resumes(self) -> bool:
        """Whether Start continues an existing run, by the name from the command line."""
        from core.runs import Run

        return (
            self.mode != "fresh" and self.name is not None and Run(self._run_client.root / self.name).exists
        )

    async def _when(self) -> str:
        """NOW, AFTER the run that is training has ended, or "" for not at all."""
        run_client = self._run_client
        if run_client.run is None or not run_client.alive or run_client.run.name == self.name:
            return NOW
        answer = await self._pane.ask(
            Question(
                "A run is training",
                f"{run_client.run.name} is training. Two runs share the machine, and each is slower.",
                [
                    Answer("", "Cancel", "primary"),
                    Answer(AFTER, "Start when it ends"),
                    Answer(NOW, "Start a second run"),
                ],
                default="",
            )
        )
        return answer or ""

    async def choose_what_to_wait_for(self) -> None:
        """Start when another run ends that is training, or that waits itself."""
        reason = self.reason_against()
        if reason:
            raise UserError(reason)
        names = await off_thread(runs_to_wait_for, self._run_client.root)
        if not names:
            raise UserError("no run is training or waiting; Start (Ctrl+R) begins at once")
        if not await self.has_text():
            return
        choices = [(name, name, "") for name in names]
        after = await self._pane.ask(Choice("Start when this run ends", choices))
        if after:
            await self.start_after(after)

    async def start_after(self, after: str) -> None:
        """Have a queue start it when another run has ended."""
        run_client = self._run_client
        name = await run_client.free_name(self.name)
        await off_thread(start_after, run_client.root, self._document.config, name, self.mode, after)
        self._begun()
        self._pane.post_message(RunsQueued("", f"{name} starts when {after} ends."))

    def _begun(self) -> None:
        self._document.started()
        # The name and mode from the command line apply to the first start only.
        self.name, self.mode = None, "auto"
