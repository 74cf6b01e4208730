"""Settings typed into the prompt: `/temperature 0.7` turns that knob, `/help` lists all."""

from __future__ import annotations

import difflib

from core.errors import UserError
from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.numbers import compact


def is_command(text: str) -> bool:
    """Whether a prompt is a command: one line that starts with a slash. A space in front makes it text."""
    return text.startswith("/") and "\n" not in text.strip()


def carry_out(text: str, knobs: Knobs) -> str:
    """Carry out a command. Returns the sentence to show. Raises UserError if it isn't one."""
    name, _, value = text.strip()[1:].partition(" ")
    name, value = name.lower().replace("_", "-"), value.strip()
    names = {knob.label.replace(" ", "-"): knob for knob in knobs.knobs}
    if name == "help":
        return "; ".join(f"/{label} {knob.help}" for label, knob in names.items())
    fitting = [label for label in names if label.startswith(name)] if name else []
    if name not in names and len(fitting) != 1:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean /{near[0]}?" if near else f"use {', '.join('/' + label for label in names)}"
        raise UserError(f'"/{name}" is not a setting; {hint} A space in front makes it text')
    knob = names[name if name in names else fitting[0]]
    if not value and not isinstance(knob.default, str):
        return f"{knob.label} is {knobs.value_text(knob)}: {knob.help}"
    accepted = knob.parse(value)
    if accepted is None:
        whole = "a whole number" if isinstance(knob.default, int) else "a number"
        bounds = f"{whole} from {compact(knob.low)} to {compact(knob.high)}"
        raise UserError(f'{knob.label} is "{value}"; accepted: {bounds}')
    knobs.set(knob.key, accepted)
    return f"{knob.label}: {knobs.value_text(knob)}"
