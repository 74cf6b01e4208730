"""The tabs, and what makes the pane of a tab. Each is imported when it is first looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mamba_tui.backend.checkpoint_trash import Trash
    from mamba_tui.backend.console_state import ConsoleState
    from mamba_tui.backend.run_client import RunClient
    from mamba_tui.backend.run_trash import RunTrash
    from mamba_tui.document import Document
    from mamba_tui.launch_options import LaunchOptions
    from mamba_tui.panes.base import Pane


# Name, key and label of every tab, from left to right.
TABS = (
    ("configure", "F2", "Configure"),
    ("train", "F3", "Train"),
    ("checkpoints", "F4", "Checkpoints"),
    ("generate", "F5", "Generate"),
    ("data", "F6", "Data"),
    ("runs", "F7", "Runs"),
    ("inspect", "F8", "Layers"),
)


@dataclass(frozen=True)
class Belongings:
    """The console's objects, from which each pane gets what it works with."""

    document: Document
    run_client: RunClient
    state: ConsoleState
    options: LaunchOptions
    trash: Trash
    run_trash: RunTrash


def make_pane(
    tab: str,
    own: Belongings,
    generator_command: list[str] | None = None,
    inspector_command: list[str] | None = None,
) -> Pane:
    """The pane of a tab, handed what it works with; the commands take the place of processes with torch."""
    if tab == "configure":
        from mamba_tui.panes.configure.pane import ConfigPane

        return ConfigPane(own.document, own.run_client, own.options, id=tab)
    if tab == "train":
        from mamba_tui.panes.train.pane import TrainPane

        return TrainPane(own.run_client, own.state, id=tab)
    if tab == "checkpoints":
        from mamba_tui.panes.checkpoints.pane import CheckpointsPane

        return CheckpointsPane(own.run_client, own.state, own.trash, id=tab)
    if tab == "generate":
        from mamba_tui.panes.generate.pane import GeneratePane

        return GeneratePane(own.run_client, own.state, id=tab, command=generator_command)
    if tab == "runs":
        from mamba_tui.panes.runs.pane import RunsPane

        return RunsPane(own.run_client, own.state, own.run_trash, id=tab)
    if tab == "inspect":
        from mamba_tui.panes.layers.pane import LayersPane

        return LayersPane(own.run_client, id=tab, command=inspector_command)
    from mamba_tui.panes.data.pane import DataPane

    return DataPane(own.document, own.run_client, id=tab)
