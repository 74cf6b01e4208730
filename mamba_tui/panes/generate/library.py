"""The prompt library: prompts that were kept, recent ones, and some to start with."""

from __future__ import annotations

from mamba_tui.widgets.safe_text import clip, visible

BUILT_IN = (
    "Once upon a time",
    "Chapter 1\n\n",
    "It was a dark and stormy night",
    '"What is it?" she asked. "',
    "The first thing he saw was",
    "In the beginning",
)
LATELY = 30
KEEP, FORGET = "keep", "forget"


def choices(prompt: str, kept: list[str], past: list[str]) -> list[tuple[str, str, str]]:
    """Rows of a choice: actions on the prompt in the editor, then every prompt in the library."""
    rows = []
    if prompt in kept:
        rows.append((FORGET, "- Remove from the library", _shown(prompt)))
    elif prompt.strip():
        rows.append((KEEP, "+ Keep in the library", _shown(prompt)))
    seen: set[str] = set()
    recent = past[: -LATELY - 1 : -1]
    for about, prompts in (("★ kept", kept), ("recent", recent), ("to start with", BUILT_IN)):
        for text in prompts:
            if text not in seen:
                seen.add(text)
                rows.append((f"take {text}", _shown(text), about))
    return rows


def chosen(answer: str, prompt: str, kept: list[str]) -> str | None:
    """Carry out an answer. Returns the prompt to put into the editor, if it is one."""
    if answer == KEEP:
        kept.append(prompt)
    elif answer == FORGET:
        kept.remove(prompt)
    else:
        return answer.removeprefix("take ")
    return None


def _shown(text: str) -> str:
    return clip(visible(text.replace("\n", "⏎")), 40)
