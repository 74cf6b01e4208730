"""Operations on runs: notes, tags, names, deleting, and how settings affect their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from core.errors import UserError
from core.runs.listing.columns import column, differing
from core.runs.listing.notes import Notes, change_tags, check_tag_change, write_notes
from core.runs.listing.summary import RunSummary
from core.sweeps.effects import Effect, Rated, effects
from core.sweeps.rename import rename
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import CheckpointRow, RunClient, best_row
from mamba_tui.backend.run_trash import RunTrash
from mamba_tui.messages import RunRenamed
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Answer, Prompt, Question


def _first_problem(words: str, check: Callable[[str], object]) -> tuple[str, str] | None:
    """What is wrong with the first invalid word, and that word."""
    for word in words.replace(",", " ").split():
        try:
            check(word)
        except UserError as error:
            return str(error), word
    return None


def unknown_column(text: str) -> tuple[str, str] | None:
    """What is wrong with a list of columns, and the wrong word."""
    return _first_problem(text, lambda name: column(name, "columns"))


def unusable_tag(text: str) -> tuple[str, str] | None:
    """What is wrong with changes of tags, and the wrong word."""
    return _first_problem(text, check_tag_change)


class RunActions:
    """Asks for input and works in a thread. Everything raises UserError."""

    def __init__(self, pane: Pane, run_client: RunClient, trash: RunTrash) -> None:
        self._pane = pane
        self._run_client = run_client
        self._trash = trash

    async def note(self, run: RunSummary) -> None:
        """Ask for a note."""
        text = await self._pane.ask(
            Prompt(f"Note on {run.name}", "Your note; empty removes it:", run.notes.note)
        )
        if text is not None:
            await off_thread(write_notes, run.run, Notes(text.strip(), run.notes.tags))

    async def tags(self, runs: Sequence[RunSummary]) -> None:
        """Ask for changes of tags, and apply them to all runs."""
        names = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
        now = ", ".join(dict.fromkeys(tag for run in runs for tag in run.notes.tags)) or "none yet"
        text = await self._pane.ask(
            Prompt(
                f"Tags of {names}",
                f"Now: {now}. Tags to add, or to remove with - in front:",
                "",
                "keep -draft",
                check=unusable_tag,
            )
        )
        for run in runs if text else ():
            await off_thread(change_tags, run.run, (text or "").replace(",", " ").split())

    async def change_name(self, run: RunSummary) -> str:
        """Ask for a new name; "" if it keeps its name."""
        answer = await self._pane.ask(Prompt(f"Rename {run.name}", "Its new name:", run.name))
        name = (answer or "").strip()
        if name in ("", run.name):
            return ""
        await off_thread(rename, run.run, name)
        self._pane.post_message(RunRenamed(run.name, name))
        self._pane.say(f"{run.name} is now {name}")
        return name

    async def delete(self, runs: Sequence[RunSummary]) -> bool:
        """Ask, then delete them, so that they can be undeleted. Returns whether that was done."""
        names = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
        answer = await self._pane.ask(
            Question(
                "Delete",
                f"Delete {names} with all checkpoints? Ctrl+Z undeletes until the console is closed.",
                [Answer("no", "Cancel", "primary"), Answer("yes", "Delete", "error")],
                default="no",
            )
        )
        if answer != "yes":
            return False
        for run in runs:
            await off_thread(self._trash.delete, run.run)
        self._pane.say(f"Deleted {names}. Ctrl+Z undeletes.")
        return True

    async def undelete(self) -> None:
        """Undelete the last one."""
        name = await off_thread(self._trash.restore)
        self._pane.say(f"Undeleted {name}" if name else "Nothing to undelete")

    async def best_checkpoint(self, run: RunSummary) -> CheckpointRow:
        """The best checkpoint of a run."""
        rows = [row for row in await self._run_client.checkpoint_rows() if not row.info.problem]
        best = best_row(rows, run.name)
        if best is None:
            raise UserError(f"{run.name} has no checkpoint yet")
        return best

    def effects(self, runs: Sequence[RunSummary]) -> list[Effect]:
        """The effect of every setting that differs between the runs, the largest first."""
        keys = differing(runs)
        rated = [
            Rated({key: run.config.get(key, "") for key in keys}, math.inf if run.best is None else run.best)
            for run in runs
        ]
        return effects(rated)
