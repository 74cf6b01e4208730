"""`mamba-tui generate` on a terminal: turn by turn, each continuing the text, with commands in between."""

from __future__ import annotations

import dataclasses
import os
import select
import sys
from typing import Protocol

from core.config.sampling import SAMPLING, SamplingSettings
from core.errors import UserError
from core.system.files import make_own_folder, read_limited, write_atomic
from core.system.folders import state_root
from mamba_tui.cli.text_output import TextOutput

HISTORY, LARGEST_HISTORY, MOST_TURNS = "prompt_history", 1 << 20, 1000
"""The file of earlier turns in the state folder, its largest size in bytes, and how many turns it keeps."""
PASTE_SECONDS = 0.05
"""The longest time between two lines of one paste."""
SETTINGS = {
    "/temperature": "temperature",
    "/seed": "seed",
    "/length": "max_new_tokens",
    "/top-k": "top_k",
    "/top-p": "top_p",
    "/min-p": "min_p",
    "/repetition-penalty": "repetition_penalty",
}
LEAVE = ("/quit", "/exit")
HINT = "each turn continues the text, and so does Enter alone; Ctrl-C ends a turn, /help lists commands"


class Writer(Protocol):
    """Generates the turns."""

    settings: SamplingSettings

    def generate(self, prompt: str, *, continues: bool) -> int:
        """Generate once. Returns an exit code."""

    def note(self, text: str) -> None:
        """Show a remark that isn't part of the text."""


def converse(writer: Writer, output: TextOutput) -> None:
    """Take turns until the user leaves."""
    _prepare_line_editor()
    writer.note(HINT)
    continues = False
    while True:
        try:
            turn = _read_turn(output)
        except EOFError:
            output.end_line()
            break
        except KeyboardInterrupt:
            output.end_line()
            break
        command = turn.strip()
        if command in LEAVE:
            break
        if command == "/new":
            continues = False
            writer.note("started a new text")
        elif command.startswith("/") and "\n" not in turn and not turn.startswith(" "):
            _carry_out(command, writer)
        else:
            writer.generate(turn, continues=continues)
            seed = (writer.settings.seed + 1) % (int(SAMPLING["seed"].high or 0) + 1)
            writer.settings = dataclasses.replace(writer.settings, seed=seed)
            continues = True
    _save_history()


def _carry_out(command: str, writer: Writer) -> None:
    """A command that shows or changes a setting."""
    name, _, value = command.partition(" ")
    try:
        if name == "/help":
            writer.note(_help(writer.settings))
        elif name == "/stop":
            writer.settings = SamplingSettings.read(
                {**dataclasses.asdict(writer.settings), "stop": [value.strip()] if value.strip() else []}
            )
            writer.note(f"stop: {', '.join(map(repr, writer.settings.stop)) or 'nowhere'}")
        elif name in SETTINGS:
            key = SETTINGS[name]
            if value:
                values = {**dataclasses.asdict(writer.settings), key: _number(value.strip())}
                writer.settings = SamplingSettings.read(values, {key: name})
            writer.note(f"{name[1:]} is {getattr(writer.settings, key)}; accepted: {SAMPLING[key].accepted}")
        else:
            raise UserError(
                f"{name} is not a command; /help lists them. To send it as text, put a space in front"
            )
    except UserError as error:
        writer.note(str(error))


def _number(text: str) -> float | int | str:
    """The number that a text stands for, or the text itself, for the setting's own check to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _help(settings: SamplingSettings) -> str:
    lines = [
        ("Enter", "continue the text"),
        ("/new", "start a new text"),
        *((name, f"{SAMPLING[key].help}; now {getattr(settings, key)}") for name, key in SETTINGS.items()),
        ("/stop TEXT", "a text that ends each turn; nothing to remove it"),
        ("/quit", "leave, as Ctrl-D does"),
    ]
    return "\n".join(f"{name:20} {words}" for name, words in lines)


def _read_turn(output: TextOutput) -> str:
    """What the user typed or pasted; lines that arrive together are one turn. Raises EOFError."""
    if not sys.stdout.isatty():
        # The text goes into a file or a pipe, where the prompt doesn't belong.
        print("\n> ", end="", file=sys.stderr, flush=True)
    first = input("\n> " if sys.stdout.isatty() else "")
    rest = _rest_of_paste()
    if rest:
        output.write(rest)
        output.end_line()
    return f"{first}\n{rest}" if rest else first


def _rest_of_paste() -> str:
    """The lines that arrived together with the one that was read."""
    data = b""
    while select.select([sys.stdin.fileno()], [], [], PASTE_SECONDS)[0]:
        block = os.read(sys.stdin.fileno(), 1 << 16)
        if not block:
            break
        data += block
    text = data.decode(sys.stdin.encoding or "utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _prepare_line_editor() -> None:
    """Line editing and history, if Python has a line editor. It takes a paste as one text."""
    try:
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
        for line in (
            read_limited(state_root() / HISTORY, LARGEST_HISTORY).decode(errors="replace").splitlines()
        ):
            readline.add_history(line)
    except (ImportError, OSError):
        return


def _save_history() -> None:
    try:
        import readline

        last = readline.get_current_history_length()
        turns = [readline.get_history_item(i) or "" for i in range(max(1, last - MOST_TURNS + 1), last + 1)]
        make_own_folder(state_root())
        lines = (" ".join(turn.splitlines()) + "\n" for turn in turns)
        write_atomic(state_root() / HISTORY, "".join(lines).encode("utf-8", "replace")[-LARGEST_HISTORY:])
    except (ImportError, OSError):
        return
