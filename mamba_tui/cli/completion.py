"""`mamba-tui completion SHELL`: a script that lets Tab complete commands, options, runs and files."""

from __future__ import annotations

import argparse
from typing import Any

from core.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
# The name of a value in --help -> the files that the shell offers for it.
FILES = ("FILE", "PATH")
FOLDERS = ("DIR",)
RUNS = ("RUN", "NAME")
# A run is a folder with a frozen configuration; only the default folder is searched.
PREAMBLE = {
    "bash": """
_mamba_tui_runs() {
  local config
  for config in checkpoints/"$1"*/config.toml; do
    [ -e "$config" ] && config=${config%/config.toml} && printf '%s\\n' "${config#checkpoints/}"
  done
}
""",
    "zsh": """
_mamba_tui_runs() {
  local -a runs
  runs=(checkpoints/*/config.toml(N:h:t))
  compadd -a runs
}
""",
    "tcsh": "",
}


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], program: argparse.ArgumentParser
) -> None:
    """Add the command. The script describes the whole program, whose parser is needed for that."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        description="Print a script that completes commands, options, runs and files in your shell. "
        "It needs the package shtab.",
    )
    parser.set_defaults(program=program)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"{', '.join(SHELLS)}")


def run(arguments: argparse.Namespace) -> int:
    """Print the script. Returns the exit code; raises UserError without shtab."""
    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion needs the package shtab; install it with pip install 'mamba-tui[completion]'"
        ) from None
    from core.config.files import preset_names

    _describe(arguments.program, preset_names(), shtab)
    print(shtab.complete(arguments.program, shell=arguments.shell, preamble=PREAMBLE[arguments.shell]))
    return 0


def _describe(parser: argparse.ArgumentParser, presets: list[str], shtab: Any) -> None:
    """Tell the shell what kind of value every option takes."""
    for action in parser._actions:
        option: Any = action
        if isinstance(action, argparse._SubParsersAction):
            option.help = "command"  # shtab skips commands without help; --help lists them anyway
            for command in action.choices.values():
                _describe(command, presets, shtab)
        elif "--preset" in action.option_strings:
            option.choices = presets
        elif "--device" in action.option_strings:
            option.choices = ["auto", "cpu", "cuda", "mps"]
        elif action.metavar in FILES:
            option.complete = shtab.FILE
        elif action.metavar in FOLDERS:
            option.complete = shtab.DIRECTORY
        elif action.metavar in RUNS and action.dest in ("run", "after"):
            option.complete = {"bash": "_mamba_tui_runs", "zsh": "_mamba_tui_runs"}
