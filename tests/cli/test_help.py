"""The help lists every command under a heading, and its examples are valid commands."""

from __future__ import annotations

import re
import shlex

import pytest

from mamba_tui.cli.help import EXAMPLES
from mamba_tui.cli.main import build_parser

TYPED = [command for lines in EXAMPLES.values() for command in lines]


def subcommands():
    return next(action.choices for action in build_parser()._actions if action.dest == "command")


def test_every_command_stands_under_a_heading():
    listed = build_parser().format_help()
    assert "Other:" not in listed  # a new command belongs into mamba_tui/cli/help.py
    for name in subcommands():
        assert f"\n  {name} " in listed


def test_examples_belong_to_known_commands():
    assert EXAMPLES.keys() <= subcommands().keys()


@pytest.mark.parametrize("typed", TYPED)
def test_examples_can_be_typed(typed):
    program, *words = shlex.split(re.split(" [<>] ", typed)[0])
    assert program == "mamba-tui"
    assert build_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("name", subcommands())
def test_every_command_describes_itself(name):
    assert len(subcommands()[name].description) > 10
