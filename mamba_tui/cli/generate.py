"""`mamba-tui generate`: a checkpoint generates text, once or turn by turn.

The model is in the generator process (`core.generation.server`). This one only reads prompts and shows text,
so it starts at once and never imports torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
import sys
from pathlib import Path
from typing import Any

from core.config.sampling import SAMPLING, SamplingSettings
from core.errors import UserError
from core.system.files import read_limited
from core.system.hardware import resolve_device
from core.system.json_lines_client import BlockingClient, Event
from core.system.processes import module_command
from mamba_tui.cli.arguments import EXIT_INTERRUPTED, number, whole_number
from mamba_tui.cli.checkpoint_choice import add_checkpoint_options, choose, unverified
from mamba_tui.cli.conversation import converse
from mamba_tui.cli.interrupts import canceling_on_interrupt
from mamba_tui.cli.text_output import TextOutput, note

LONGEST_PROMPT = 1 << 24
FLAGS = {key: "--" + key.replace("_", "-") for key in SAMPLING if key != "alternatives"} | {"stop": "--stop"}
METAVARS = {
    "max_new_tokens": "N",
    "temperature": "T",
    "top_k": "K",
    "top_p": "P",
    "min_p": "P",
    "repetition_penalty": "R",
    "seed": "S",
}
REASONS = {
    "length": "length reached",
    "stop": "stop text",
    "end": "end of document",
    "stopped": "stopped",
}


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "generate",
        help="generate text from a checkpoint",
        description="Generate text from a checkpoint. Without a prompt: on a terminal, turn by turn, each "
        "continuing the text so far; elsewhere all of standard input is the prompt.",
    )
    parser.text_options = {"--prompt", "--stop"}
    add_checkpoint_options(parser)
    text = parser.add_argument_group("text")
    prompt = text.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="continue this text once, then exit")
    prompt.add_argument(
        "--prompt-file", metavar="FILE",
        help="the same from a UTF-8 file, without its last line end; - is standard input",
    )  # fmt: skip
    text.add_argument(
        "--stop", action="append", metavar="TEXT", help="stop at this text and leave it out; repeatable"
    )
    text.add_argument("--ignore-end", action="store_true", default=None, help=SAMPLING["ignore_end"].help)
    sampling = parser.add_argument_group("sampling")
    for key, metavar in METAVARS.items():
        item = SAMPLING[key]
        kind = whole_number if item.kind is int else number
        default = "random" if key == "seed" else f"{item.default:g}"
        (text if key == "max_new_tokens" else sampling).add_argument(
            FLAGS[key], type=kind, metavar=metavar, help=f"{item.help} (default {default})"
        )


def run(arguments: argparse.Namespace) -> int:
    """Generate once for a prompt, otherwise hold a conversation. Returns the exit code."""
    given = {key: getattr(arguments, key) for key in FLAGS}
    if given["seed"] is None:
        given["seed"] = random.SystemRandom().randrange(1 << 31)
    settings = SamplingSettings.read(given, FLAGS)
    checkpoint, words = choose(arguments)
    resolve_device(arguments.device)
    prompt = _prompt(arguments)
    output = TextOutput()
    with BlockingClient(module_command("core.generation.server"), "the generator") as client:
        writer = TextWriter(client, settings, output, interactive=prompt is None)
        writer.load(checkpoint, arguments.device, words)
        if prompt is None:
            converse(writer, output)
            return 0
        output.write(prompt)
        return writer.generate(prompt, continues=False)


def _prompt(arguments: argparse.Namespace) -> str | None:
    """The text to continue; None if a person is to be asked turn by turn."""
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if arguments.prompt_file in (None, "-"):
        if arguments.prompt_file is None and sys.stdin.isatty():
            return None
        text = sys.stdin.read(LONGEST_PROMPT + 1)
        if len(text) > LONGEST_PROMPT:
            raise UserError(
                f"standard input has more than {LONGEST_PROMPT:,} characters; accepted: a shorter prompt"
            )
        return _without_last_line_end(text)
    path = Path(arguments.prompt_file)
    try:
        text = read_limited(path, LONGEST_PROMPT, follow_links=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--prompt-file is {path}, whose byte {error.start:,} is not UTF-8; accepted: a text in UTF-8"
        ) from None
    except OSError as error:
        raise UserError(
            f"--prompt-file is {path}, which cannot be read ({error.strerror or error})"
        ) from None
    return _without_last_line_end(text)


def _without_last_line_end(text: str) -> str:
    """Every editor and `echo` end the last line, which says nothing about where the text continues."""
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


class TextWriter:
    """Has the generator process generate, and shows what it sends."""

    def __init__(
        self, client: BlockingClient, settings: SamplingSettings, output: TextOutput, *, interactive: bool
    ) -> None:
        self.settings = settings
        self._client, self._output, self._interactive = client, output, interactive

    def load(self, checkpoint: Path, device: str, words: str) -> None:
        """Load a checkpoint and say which one."""
        request = self._client.send("load", checkpoint=str(checkpoint), device=device)
        loaded = next(event for event in self._client.events(request) if event["event"] == "loaded")
        self.note(f"{words}; {loaded['parameters']:,} parameters on {loaded['device']}")
        if not loaded["verified"]:
            self.note(unverified(checkpoint))
        for warning in loaded.get("warnings", ()):
            self.note(warning)

    def generate(self, prompt: str, *, continues: bool) -> int:
        """Stream one generation. Ctrl-C ends it and keeps the text so far. Returns an exit code."""
        # Characters of an argument or of standard input that aren't Unicode arrive as lone surrogates.
        prompt = re.sub("[\ud800-\udfff]", "\ufffd", prompt)
        settings = dataclasses.asdict(self.settings)
        request = self._client.send("generate", prompt=prompt, **{"continue": continues}, **settings)
        done: Event = {}
        with canceling_on_interrupt(self._client, request) as interrupts:
            for event in self._client.events(request):
                if event["event"] == "token":
                    # With --ignore-end another document follows; nothing else separates the two.
                    self._output.write(event["text"] + ("\n\n" if self._goes_on(event) else ""))
                elif event["event"] == "done":
                    done = event
                    break
        self._output.write(done["text"])
        self._output.end_line()
        self.note(self._ending(done))
        return EXIT_INTERRUPTED if interrupts else 0

    def note(self, text: str) -> None:
        """A remark about the text that isn't part of it."""
        note(text)

    def _goes_on(self, event: Event) -> bool:
        return bool(event["ends_document"] and self.settings.ignore_end)

    def _ending(self, done: Event) -> str:
        """`end of document after 195 tokens, 310 tokens/s, seed 7`."""
        count = done["tokens"]
        words = f"{REASONS[done['reason']]} after {count:,} token{'' if count == 1 else 's'}"
        words += f", {done['tokens_per_second']:,.0f} tokens/s, seed {self.settings.seed}"
        if done["reason"] == "end":
            way = "Enter starts another document" if self._interactive else "--ignore-end continues past it"
            return f"{words}; {way}"
        return f"{words}; Enter continues" if self._interactive else words
