"""States, progress, events and samples in words; and free file names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.content import Content

from mamba_tui import clock
from mamba_tui.widgets.numbers import bytes_size, duration, loss
from mamba_tui.widgets.safe_text import visible

if TYPE_CHECKING:
    from mamba_tui.backend.run_client import Session

LONGEST_SAMPLE = 4000
# state -> theme variable of its colour
STATE_COLOR = {
    "training": "success",
    "finished": "success",
    "paused": "warning",
    "failed": "error",
    "died": "error",
    "stopped": "secondary",
    "new": "secondary",
}
SIGN = {
    "training": "●",
    "paused": "‖",
    "finished": "✔",
    "stopped": "■",
    "failed": "✘",
    "died": "✘",
    "new": "○",
}


def state_of(session: Session) -> str:
    """The followed run's state in one word; "" where there is none."""
    if session.starting:
        return "starting"
    if session.run is None:
        return ""
    history, status = session.history, session.status
    if session.alive and history is not None:
        if history.end is not None:
            return "stopping"
        return str(history.state.get("state", "training")) if history.state else "preparing"
    return status.state if status is not None else "looking"


def short_status(session: Session) -> tuple[str, str, str]:
    """For the tab bar: sign, run, state and percentage; the same in few cells; its colour's variable."""
    state = state_of(session)
    if not state:
        text = "read-only" if session.read_only else ""
        return text, text, ""
    name = visible(session.starting or (session.run.name if session.run else ""))
    if len(name) > 24:
        name = name[:23] + "…"
    text = f"{SIGN.get(state, '◌')} {name} {state}"
    short = f"{SIGN.get(state, '◌')} {state}"
    progress = session.history.progress if session.history else None
    if progress is not None and session.alive and state != "preparing":
        text += f" {progress:.0%}"
        short = f"{SIGN.get(state, '◌')} {progress:.0%}"
    return text, short, STATE_COLOR.get(state, "accent")


def sentence(session: Session, now: float | None = None) -> str:
    """What the followed run is doing, in words."""
    state, history, status = state_of(session), session.history, session.status
    if state == "":
        return "no run yet"
    if state == "starting":
        return "starting the trainer ..."
    if state == "looking" or history is None:
        return "reading the run ..."
    share = session.catching_up
    if share is not None:
        return f"reading the history {share:.0%}"
    event = history.state or {}
    detail = visible(event.get("detail") or "")
    progress = event.get("progress")
    if state in ("failed", "died", "finished", "stopped", "new"):
        message = visible(status.message) if status and status.message else ""
        if history.error is not None and state == "failed":
            message = (
                visible(history.error.get("message", "")) + " " + visible(history.error.get("advice", ""))
            )
        message = message.strip()
        return message if message.startswith(state) else f"{state}: {message}" if message else state
    if state == "training":
        return detail or "training"
    words = {"compiling": "compiling the step", "saving": "saving a checkpoint"}.get(state, state)
    if detail:
        words = detail if state == "preparing" else f"{words}: {detail}"
    if isinstance(progress, (int, float)) and "%" not in words:
        words += f" {progress:.0%}"
    since = event.get("time")
    if isinstance(since, (int, float)):
        seconds = (clock.now() if now is None else now) - since
        if seconds >= 2:
            words += f", {duration(seconds)}"
    return words


def event_sentence(note: Mapping[str, Any]) -> str:
    """An event as a sentence."""
    kind, step = note.get("kind"), note.get("step")
    at = f"step {step:,}: " if isinstance(step, int) else ""
    if kind == "run":
        resumed = note.get("resumed_from")
        begin = f"went on from step {resumed:,}" if isinstance(resumed, int) else "began"
        return visible(f"{begin} on {note.get('device')}, {note.get('parameters', 0):,} parameters")
    if kind == "eval":
        losses = f"training {loss(note.get('train_loss'))}, validation {loss(note.get('validation_loss'))}"
        return visible(f"{at}evaluated: {losses}, {loss(note.get('bits_per_byte'))} bits per byte")
    if kind == "checkpoint":
        best = ", the best so far" if note.get("best") else ""
        return visible(f"{at}saved {note.get('file')}, {bytes_size(note.get('bytes'))}{best}")
    if kind == "command":
        verdict = "" if note.get("accepted") else " refused"
        return visible(f"{note.get('command')}{verdict}: {note.get('message') or 'done'}")
    if kind == "end":
        return visible(f"{at}{note.get('reason')}: {note.get('message') or 'ended'}")
    words = f"{note.get('message', '')} {note.get('advice', '')}".strip()
    return visible(f"{kind}: {words}")


def sample_content(event: Mapping[str, Any], *, lines: bool = True) -> Content:
    """Prompt in bold, then what was written."""
    if not lines:
        # One paragraph: line ends become spaces, everything else stays visible.
        event = {key: " ".join(str(event.get(key, "")).split()) for key in ("prompt", "text")}
    prompt = visible(str(event.get("prompt", ""))[:LONGEST_SAMPLE], lines=lines)
    text = visible(str(event.get("text", ""))[:LONGEST_SAMPLE], lines=lines)
    if prompt and text.startswith(prompt):
        text = text[len(prompt) :]
    return Content.assemble((prompt, "bold"), text)


def free_path(path: Path) -> Path:
    """The path itself, or with the first number that is not taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
