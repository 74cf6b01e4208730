"""The commands of the palette: everything a key does in any tab, except moving around."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mamba_tui import keys

# Actions that people only use by their keys.
MOVEMENT = ("move", "page", "edge", "scroll", "left_right", "app.focus", "choose(", "pan(", "cycle", "nudge")
NOT_OFFERED = ("command_palette", "newline", "submit", "tab(", "next_tab")


@dataclass(frozen=True)
class Command:
    """An action, the tab it belongs to, and its name in the palette."""

    title: str
    shortcut: str
    context: keys.Context
    action: str


def all_commands(tabs: dict[str, str], first: str) -> Iterator[Command]:
    """Every command; those of the tab `first` come first. `tabs` gives each tab's label."""
    ordered = sorted(keys.CONTEXTS, key=lambda name: keys.CONTEXTS[name].tab != first)
    seen = set()
    for name in ordered:
        context = keys.CONTEXTS[name]
        if not context.widget:
            continue
        for key in keys.TABLE[name]:
            if key.action.startswith((*MOVEMENT, *NOT_OFFERED)):
                continue
            title = f"{tabs[context.tab]}: {key.help}" if context.tab else sentence(key.help)
            if title not in seen:
                seen.add(title)
                names = ", ".join(map(keys.key_name, key.keys.split(",")))
                yield Command(title, names, context, key.action)
    for tab, label in tabs.items():
        key = next(key for key in keys.TABLE["app"] if key.action == f"tab('{tab}')")
        yield Command(f"Go to {label}", keys.key_name(key.keys), keys.CONTEXTS["app"], key.action)


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
