"""The options that the command line passes to the console."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.config.schema import RunConfig

Mode = Literal["auto", "resume", "fresh"]


@dataclass(frozen=True)
class LaunchOptions:
    """How `mamba-tui launch` was called.

    `config_path` is the file that edits are saved to, `attach` the name of a run to follow at once.
    `read_only` forbids everything that would change a run or a file.
    """

    config: RunConfig = field(default_factory=RunConfig)
    config_path: Path | None = None
    checkpoints: Path = Path("checkpoints")
    run_name: str | None = None
    mode: Mode = "auto"
    read_only: bool = False
    attach: str | None = None
