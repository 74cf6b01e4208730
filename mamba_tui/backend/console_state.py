"""What the console remembers between starts: theme, tab, chart options, prompts.

A small JSON file in the checkpoints folder. A missing or broken file counts as empty.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.system.files import write_atomic

FILE = ".mamba-tui-console.json"
PROMPTS_KEPT = 200


@dataclass
class ConsoleState:
    """Values with defaults; unknown or invalid ones in the file are ignored."""

    theme: str = ""
    tab: str = ""
    smoothing: int = 2
    axis: str = "number"
    log_y: bool = False
    view: str = "charts"
    chart: str = ""
    selected: str = ""
    windows: dict[str, Any] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    bits: bool = False
    pins: list[str] = field(default_factory=list)
    sort: str = "time"
    sort_reverse: bool = False
    run_columns: list[str] = field(default_factory=list)
    run_sort: str = "changed"
    run_sort_reverse: bool = False
    prompts: list[str] = field(default_factory=list)
    library: list[str] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: Path | None) -> ConsoleState:
        """The state in a file, without its invalid parts."""
        state = cls(path=path)
        if path is None:
            return state
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return state
        if not isinstance(data, dict):
            return state
        for item in dataclasses.fields(cls):
            value = data.get(item.name)
            if item.name != "path" and type(value) is type(getattr(state, item.name)):
                setattr(state, item.name, value)
        state.prompts = [text for text in state.prompts if isinstance(text, str)][-PROMPTS_KEPT:]
        state.library = [text for text in state.library if isinstance(text, str)]
        state.pins = [text for text in state.pins if isinstance(text, str)]
        state.run_columns = [text for text in state.run_columns if isinstance(text, str)]
        state.overlays = [text for text in state.overlays if isinstance(text, str)]
        return state

    def save(self) -> None:
        """Write the file; if that fails, only convenience is lost."""
        if self.path is None or not self.path.parent.is_dir():
            return
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        del values["path"]
        values["prompts"] = self.prompts[-PROMPTS_KEPT:]
        with contextlib.suppress(OSError):
            write_atomic(self.path, json.dumps(values).encode())


def default_path(checkpoints: Path) -> Path:
    """The file with the console's state for these runs."""
    return checkpoints / FILE
