"""Dialogs about all layers at once: a ramp of widths, and a list to paste."""

from __future__ import annotations

from mamba_tui.document import Document, ListError, read_list
from mamba_tui.panes.base import Pane
from mamba_tui.widgets.dialogs import Prompt

RAMP = (
    "Width of the first and of the last layer, then `even` or `geometric`. "
    "A third number makes an hourglass: first, waist, last."
)
LIST = "Widths (256,192,128), types (mamba,standard,m2) or `heads 4,4,8`, one per layer."


async def ask_for_ramp(pane: Pane, document: Document) -> bool:
    """Ask for widths and set them. Returns whether the document changed."""
    widths = document.values["n_embd"]
    answer = await pane.ask(Prompt("Ramp", RAMP, f"{widths[0]} {widths[-1]} even"))
    if not answer:
        return False
    words = answer.replace(",", " ").split()
    numbers = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 6]
    if len(numbers) not in (2, 3) or not all(1 <= number <= 65536 for number in numbers):
        pane.say("a ramp is two or three widths from 1 to 65536, such as: 256 128 even", problem=True)
        return False
    geometric = any(word.startswith("g") for word in words)
    if len(numbers) == 2:
        document.ramp(numbers[0], numbers[1], geometric=geometric)
    else:
        document.hourglass(*numbers, geometric=geometric)
    return True


async def ask_for_list(pane: Pane, document: Document) -> str | None:
    """Ask for a list of widths, heads or types. Returns the text."""
    widths = ",".join(str(width) for width in document.values["n_embd"])
    return await pane.ask(Prompt("List", LIST, widths, check=list_problem))


def list_problem(text: str) -> tuple[str, str] | None:
    """What is wrong with a list, and its wrong word; None if it can be used."""
    try:
        read_list(text)
    except ListError as error:
        return str(error), error.word
    return None
