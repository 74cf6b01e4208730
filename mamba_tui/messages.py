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
    from core.config.schema import RunConfig
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


@dataclass
class RunsChosen(Message):
    """Follow the first of these runs in Train, and draw the others behind it."""

    names: list[str]


@dataclass
class RunsQueued(Message):
    """Runs were handed to a queue: show those that pass this filter in Runs, and say this sentence."""

    filter: str
    sentence: str


@dataclass
class RunRenamed(Message):
    """A run has another name."""

    old: str
    new: str


@dataclass
class ConfigurationChosen(Message):
    """Edit this configuration; `source` says where it comes from."""

    config: RunConfig
    source: str
