"""The user's folders for files of this program. `platformdirs` knows the conventions of each system."""

from __future__ import annotations

from pathlib import Path

import platformdirs

PROGRAM = "mamba-tui"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/mamba-tui`, by default `~/.cache/mamba-tui`. Not created here."""
    return platformdirs.user_cache_path(PROGRAM, appauthor=False)


def state_root() -> Path:
    """`$XDG_STATE_HOME/mamba-tui`, by default `~/.local/state/mamba-tui`. Not created here."""
    return platformdirs.user_state_path(PROGRAM, appauthor=False)


def config_root() -> Path:
    """`$XDG_CONFIG_HOME/mamba-tui`, by default `~/.config/mamba-tui`. Not created here."""
    return platformdirs.user_config_path(PROGRAM, appauthor=False)
