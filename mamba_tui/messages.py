"""Messages between panes and the app.

The app owns the document, the run client and the console's state, and hands them to the panes. A pane changes
its own parts; for everything else it posts one of these, which bubbles up to the app. Nobody changes a
message after posting it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from mamba_tui.backend.run_client import CheckpointRow


@dataclass
class Notice(Message):
    """A sentence for the user; `problem` marks something that went wrong.

    `text` may contain text from outside: the app makes it safe to show.
    """

    text: object
    problem: bool = False


@dataclass
class RunStateChanged(Message):
    """The run client has news: show it soon."""


@dataclass
class RunStarted(Message):
    """A run was started or resumed: show it in Train, with this sentence."""

    sentence: str


@dataclass
class RunListRequested(Message):
    """The user wants the list of runs."""


@dataclass
class CheckpointsChosen(Message):
    """Load these checkpoints into Generate: slot -> checkpoint."""

    slots: dict[int, CheckpointRow]
