"""The questions before the console closes, and the report that it leaves if it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.screen import Screen

from core.system.files import write_atomic
from mamba_tui.backend.off_thread import off_thread
from mamba_tui.backend.run_client import RunClient
from mamba_tui.document import Document
from mamba_tui.widgets.dialogs import Answer, Question
from mamba_tui.widgets.safe_text import visible

Ask = Callable[[Screen[str | None]], Awaitable[str | None]]


async def ask_before_quitting(ask: Ask, document: Document, run_client: RunClient) -> str | None:
    """Ask what to do with unsaved changes and with a run that is training. Raises UserError.

    Returns the last message for the terminal ("" for none), or None if the console is to stay open.
    """
    if not run_client.read_only and document.worth_saving and not await _changes_decided(ask, document):
        return None
    if run_client.run is None or not run_client.alive or run_client.read_only:
        return ""
    return await _ask_about_run(ask, run_client, visible(run_client.run.name))


async def _changes_decided(ask: Ask, document: Document) -> bool:
    answer = await ask(
        Question(
            "Quit",
            "The configuration has changes that are neither in a file nor in a run.",
            [
                Answer("stay", "Cancel"),
                Answer("drop", "Quit without saving"),
                Answer("save", f"Save to {document.path.name}", "primary"),
            ],
        )
    )
    if answer == "save":
        await off_thread(document.save, document.path)
    return answer in ("save", "drop")


async def _ask_about_run(ask: Ask, run_client: RunClient, name: str) -> str | None:
    answer = await ask(
        Question(
            "Quit",
            f"{name} is training and keeps training when the console closes. "
            f"`mamba-tui attach {name}` shows it again.",
            [
                Answer("cancel", "Cancel"),
                Answer("stop", "Save and stop it"),
                Answer("detach", "Keep it training", "primary"),
            ],
        )
    )
    if answer == "detach":
        return f"{name} keeps training. To see it again: mamba-tui attach {name}"
    if answer == "stop":
        await run_client.command("stop")
        return f"{name} saves a checkpoint and stops. To resume it: mamba-tui launch --resume --run {name}"
    return None


def write_crash_report(error: BaseException, folder: Path) -> Path | None:
    """Write a traceback to a file in the runs folder. Returns None if that isn't possible."""
    import traceback

    path = folder / "console-error.log"
    try:
        write_atomic(path, "".join(traceback.format_exception(error)).encode("utf-8", "replace"))
    except OSError:
        return None
    return path


def last_words(error: BaseException, report: Path | None, run_client: RunClient) -> str:
    """One sentence about a failure of the console, for the terminal."""
    where = f"; details are in {visible(report)}" if report else ""
    training = ""
    if run_client.run is not None and run_client.alive:
        training = f" {visible(run_client.run.name)} keeps training."
    return f"The console failed: {type(error).__name__}{where}.{training}"
