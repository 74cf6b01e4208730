"""How arguments are parsed: only real numbers are accepted, and every refusal is one sentence."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Collection
from typing import NoReturn

from core.config.setting import show
from core.errors import UserError
from mamba_tui.cli.streams import say_error

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
MOST_DIGITS = 18


def whole_number(text: str) -> int:
    """An argparse type: a whole number in ASCII digits that fits 64 bits."""
    if not INTEGER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"is {show(text)}; accepted: a whole number")
    if sum(character.isdigit() for character in text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(
            f"is {show(text)}; accepted: a whole number of at most {MOST_DIGITS} digits"
        )
    return int(text)


def add_text_option(group: argparse._ArgumentGroup) -> None:
    """Add `--text`: the files that a command reads with a trained model."""
    group.add_argument(
        "--text", nargs="+", action="extend", required=True, metavar="PATH",
        help="text files, and folders of .txt and .txt.gz files; repeatable",
    )  # fmt: skip


def check_texts(paths: list[str]) -> None:
    """Raise UserError unless every path of `--text` exists and can be read."""
    for path in paths:
        problem = "" if os.access(path, os.R_OK) else "cannot be read"
        if not os.path.lexists(path):
            problem = "does not exist"
        if problem:
            raise UserError(f"--text is {show(path)}, which {problem}; accepted: text files and folders")


def count_or_auto(text: str) -> int:
    """An argparse type: a whole number, or "auto" as 0."""
    if text.lower() == "auto":
        return 0
    try:
        return whole_number(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("a whole", "auto or a whole")) from None


def number(text: str) -> float:
    """An argparse type: a finite number in ASCII digits."""
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"is {show(text)}; accepted: a number, such as 10 or 0.5 or 1e-3")
    return float(text)


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence, suggests what was probably meant, and lists defaults."""

    text_options: Collection[str] = ()
    """Options whose value is any text, which may begin with a dash."""

    def __init__(self, *arguments: object, **options: object) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to find help, and exit with 2."""
        # "argument --seed: is "x"; accepted: ..." reads better without the first word and the colon.
        message = re.sub(r"^argument (\S+): (is |expected )", r"\1 \2", message)
        message = re.sub(r"^argument ", "", message)
        say_error(f"{self.prog}: {message}; {self.prog} --help lists what is accepted")
        sys.exit(EXIT_BAD_INPUT)

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # noqa: ANN001,ANN201
        """Parse, and refuse unknown arguments by naming the option that looks most like them."""
        given = self._with_texts(list(sys.argv[1:] if args is None else args))
        parsed, rest = self.parse_known_args(given, namespace)
        if rest:
            command = self._chosen(parsed)
            command.error(f"{show(rest[0])} is not an option of {command.prog}{command.nearest(rest[0])}")
        return parsed

    def _with_texts(self, given: list[str]) -> list[str]:
        """The arguments, with each text option joined to its value."""
        command = next(
            (choices[given[0]] for choices in self._commands() if given and given[0] in choices), self
        )
        rest = iter(given)
        return [
            f"{argument}={value}"
            if argument in command.text_options and (value := next(rest, None)) is not None
            else argument
            for argument in rest
        ]

    def _commands(self) -> list[dict[str, Parser]]:
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [action.choices for action in actions]

    def _get_values(self, action, arg_strings):  # type: ignore[no-untyped-def]  # noqa: ANN001,ANN202
        # argparse removes "--" even if it is the value of an option.
        if action.option_strings and arg_strings == ["--"]:
            return "--"
        return super()._get_values(action, arg_strings)

    def _chosen(self, parsed: argparse.Namespace) -> Parser:
        """The parser of the command that was called."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                name = getattr(parsed, action.dest, None)
                if name in action.choices:
                    return action.choices[name]._chosen(parsed)
        return self

    def nearest(self, given: str) -> str:
        """A question that names the most similar option; "" without one."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        near = difflib.get_close_matches(given.partition("=")[0], options, n=1, cutoff=0.6)
        return f"; did you mean {near[0]}?" if near else ""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse an unknown command or choice and name the most similar one."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}? " if near else ""
        what = (action.metavar if isinstance(action.metavar, str) else action.dest).lower()
        self.error(f"{show(value)} is not a known {what}; {meant}accepted: {', '.join(names)}")
