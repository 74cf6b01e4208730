"""Sweeps in the Runs tab: a list, and resuming or stopping one."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import UserError
from core.runs.listing.summary import RunSummary
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.backend.sweeps import SweepRow, resume_sweep, stop_sweep, sweep_rows
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Choice, Question


class SweepActions:
    """Asks which sweep, and what to do with it. Everything raises UserError."""

    def __init__(self, pane: Pane, run_client: RunClient) -> None:
        self._pane = pane
        self._run_client = run_client

    async def choose(self, runs: Sequence[RunSummary]) -> str:
        """The sweep whose runs to show; "" if none was chosen or something else was done."""
        rows = {row.name: row for row in await off_thread(sweep_rows, self._run_client.root, runs)}
        if not rows:
            raise UserError("no sweeps yet; Ctrl+W in Configure starts one")
        name = await self._pane.ask(
            Choice("Sweeps", [(row.name, row.name, words(row)) for row in rows.values()])
        )
        if not name:
            return ""
        row = rows[name]
        if row.problem:
            raise UserError(row.problem)
        answer = await self._pane.ask(Question(name, f"{words(row)}.", self._answers(row), default="show"))
        if answer == "stop":
            self._pane.say(f"Stopping {name}: its runs save and end.")
            saved = await off_thread(stop_sweep, self._run_client.root, name)
            self._pane.say(f"{name} has stopped, {saved} runs saved. It can be resumed here.")
        elif answer == "resume":
            await off_thread(resume_sweep, self._run_client.root, name)
            self._pane.say(f"{name} continues in the background.")
        return name if answer == "show" else ""

    def _answers(self, row: SweepRow) -> list[Answer]:
        answers = [Answer("cancel", "Cancel")]
        if row.in_progress and not self._run_client.read_only:
            answers.append(Answer("stop", "Save and stop", "warning"))
        elif not self._run_client.read_only and row.states.keys() - {"finished", "pruned"}:
            answers.append(Answer("resume", "Resume", "success"))
        return [*answers, Answer("show", "Show its runs", "primary")]


def words(row: SweepRow) -> str:
    """Such as: 6 runs: 2 finished, 4 new; running."""
    if row.problem:
        return row.problem
    states = ", ".join(f"{count} {state}" for state, count in row.states.items())
    before = f", after {row.after}" if row.after else ""
    now = "; running" if row.in_progress else ""
    return f"{row.size} run{'' if row.size == 1 else 's'}{before}: {states}{now}"
