"""The two status lines of the Train pane: what the trainer is doing, and its figures."""

from __future__ import annotations

import math

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from core.runs.events import EvaluationEvent, StepEvent
from core.runs.history import RunHistory
from mamba_tui.backend.run_client import RunClient
from mamba_tui.panes.train.details import TOKENS_PER_PARAMETER, token_share
from mamba_tui.widgets.numbers import compact, duration, loss, rate
from mamba_tui.widgets.safe_text import clip
from mamba_tui.wording import SIGN, STATE_COLOR, sentence, state_of

BAR_CELLS = 16


def status_lines(run_client: RunClient, width: int) -> Content:
    """Both lines, cut to the width. If a run failed, the reason may use both."""
    state = state_of(run_client)
    if state in ("failed", "died"):
        name = clip(run_client.run.name if run_client.run else "", 24)
        words = f"{SIGN[state]} {name}  {sentence(run_client)}"
        if cell_len(words) > width:
            first, rest = _broken(words, width)
            color = f"${STATE_COLOR[state]}"
            return Content.assemble((first, f"bold {color}"), "\n", (clip(rest, width), color))
    return Content.assemble(first_line(run_client, width), "\n", second_line(run_client, width))


def _broken(words: str, width: int) -> tuple[str, str]:
    """A sentence broken at the last space that lets its first part fit, or inside a longer word."""
    head = set_cell_size(words, width).rstrip()
    place = head.rfind(" ")
    place = place if place > width // 2 else len(head)
    return words[:place], words[place:].strip()


def first_line(run_client: RunClient, width: int) -> Content:
    """Run, what it does in words, steps, progress bar, time left."""
    state = state_of(run_client)
    if not state:
        return Content.styled(clip("No run yet. Ctrl+R starts one; a lists earlier runs.", width), "$muted")
    color = f"${STATE_COLOR.get(state, 'accent')}"
    name = clip(run_client.starting or (run_client.run.name if run_client.run else ""), 24)
    history = run_client.history
    left = f"{SIGN.get(state, '◌')} {name}  "
    words = sentence(run_client)
    right = _progress(run_client, history, width - cell_len(left) - cell_len(words) - 2) if history else ""
    words = clip(words, max(8, width - cell_len(name) - cell_len(right) - 6))
    gap = max(1, width - cell_len(left) - cell_len(words) - cell_len(right))
    return Content.assemble((left, f"bold {color}"), words, " " * gap, (right, "$muted"))


def _progress(run_client: RunClient, history: RunHistory, room: int) -> str:
    """How far the run is. Words say more than a bar: where they leave little room it gives way to them,
    then the share done, then the time left.
    """
    if not history.max_iters:
        return ""
    step = f"step {history.step:,}/{history.max_iters:,}"
    share = history.progress or 0.0
    left = history.seconds_left if run_client.alive and state_of(run_client) == "training" else None
    remaining = f"  {duration(left)} left" if left is not None and history.step < history.max_iters else ""
    percent = f"{share:.0%}"
    cells = min(BAR_CELLS, room - cell_len(step + percent + remaining) - 3)
    if cells >= 4:
        filled = round(cells * share)
        return f"{step}  {'━' * filled}{'╌' * (cells - filled)} {percent}{remaining}"
    without_bar = (f"{step}  {percent}{remaining}", f"{step}{remaining}", step)
    return next((words for words in without_bar if cell_len(words) <= room), step)


def second_line(run_client: RunClient, width: int) -> Content:
    """Losses, speed and the rest, as many as fit."""
    history = run_client.history
    if history is None or (history.last_step is None and history.last_evaluation is None):
        return Content.styled(clip(_advice(run_client), width), "$muted")
    figures = _figures(history.last_step, history.last_evaluation, run_client)
    advice = "" if run_client.alive else _advice(run_client)
    room = width - len(advice) - 3 if advice else width
    parts: list[Content | tuple[str, str]] = []
    used = 0
    for label, value in figures:
        cells = len(label) + len(value) + 1 + (3 if parts else 0)
        if used + cells > room:
            break
        parts += [("   " if parts else "", ""), (f"{label} ", "$muted"), (value, "bold")]
        used += cells
    if advice:
        parts.append((f"   {advice}", "$accent"))
    return Content.assemble(*parts)


def _figures(
    step: StepEvent | None, evaluation: EvaluationEvent | None, run_client: RunClient
) -> list[tuple[str, str]]:
    figures = []
    if step is not None:
        figures.append(("loss", loss(step.loss)))
    if evaluation is not None:
        figures.append(("validation", loss(evaluation.validation_loss)))
        figures.append(("bits/byte", loss(evaluation.bits_per_byte)))
    if step is not None:
        if run_client.alive:
            figures.append(("tokens/s", compact(step.tokens_per_second)))
        figures.append(("lr", rate(step.learning_rate)))
        figures.append(("grad", compact(step.gradient_norm)))
        figures.append(("passes", f"{step.epoch:.2f}"))
        tokens = token_share(run_client.history) if run_client.history is not None else None
        share = f", {tokens[0] / tokens[1]:.0%} of {TOKENS_PER_PARAMETER} x parameters" if tokens else ""
        figures.append(("tokens", compact(step.tokens) + share))
        if math.isfinite(step.data_wait):
            figures.append(("waiting for data", f"{step.data_wait:.0%}"))
    return figures


def _advice(run_client: RunClient) -> str:
    state = state_of(run_client)
    if state in ("finished",):
        return "F5 generates text, F4 shows its checkpoints"
    if state in ("stopped", "died", "failed"):
        history = run_client.history
        saved = history is not None and any(mark.kind in ("checkpoint", "best") for mark in history.marks)
        return (
            "R resumes from its last checkpoint" if saved else "F2 changes the configuration, 3 shows the log"
        )
    return ""
