"""States, progress, events and samples in words, and unused file names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mamba_tui import clock
from mamba_tui.widgets.numbers import bytes_size, duration, loss
from mamba_tui.widgets.plan_words import plan_lines, rough_time, time_range
from mamba_tui.widgets.safe_text import visible

if TYPE_CHECKING:
    from textual.content import Content

    from core.runs.events import Event, PlanEvent, SampleEvent
    from mamba_tui.backend.run_client import RunClient

LONGEST_SAMPLE = 4000
# state -> theme variable of its color
STATE_COLOR = {
    "training": "success",
    "finished": "success",
    "paused": "warning",
    "failed": "error",
    "died": "error",
    "gone": "error",
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
    "gone": "✘",
    "new": "○",
}


def state_of(run_client: RunClient) -> str:
    """The followed run's state in one word; "" without a run."""
    if run_client.starting:
        return "starting"
    if run_client.run is None:
        return ""
    history, status = run_client.history, run_client.status
    if run_client.alive and history is not None:
        if history.end is not None:
            return "stopping"
        return str(history.state.state) if history.state else "preparing"
    return status.state if status is not None else "looking"


def short_status(run_client: RunClient) -> tuple[str, str, str]:
    """For the tab bar: symbol, run, state and percentage; the same in few cells; its color's variable."""
    state = state_of(run_client)
    if not state:
        text = "read-only" if run_client.read_only else ""
        return text, text, ""
    name = visible(run_client.starting or (run_client.run.name if run_client.run else ""))
    if len(name) > 24:
        name = name[:23] + "…"
    text = f"{SIGN.get(state, '◌')} {name} {state}"
    short = f"{SIGN.get(state, '◌')} {state}"
    progress = run_client.history.progress if run_client.history else None
    if progress is not None and run_client.alive and state != "preparing":
        text += f" {progress:.0%}"
        short = f"{SIGN.get(state, '◌')} {progress:.0%}"
    return text, short, STATE_COLOR.get(state, "accent")


def sentence(run_client: RunClient, now: float | None = None) -> str:
    """What the followed run is doing, in words."""
    state, history, status = state_of(run_client), run_client.history, run_client.status
    if state == "":
        return "no run yet"
    if state == "starting":
        return "starting the trainer ..."
    if state == "looking" or history is None:
        return "reading the run ..."
    share = run_client.catching_up
    if share is not None:
        return f"reading the history {share:.0%}"
    event = history.state
    detail = visible(event.detail) if event else ""
    if state in ("failed", "died", "gone", "finished", "stopped", "new"):
        message = visible(status.message) if status and status.message else ""
        if history.error is not None and state == "failed":
            message = f"{visible(history.error.message)} {visible(history.error.advice)}"
        message = message.strip()
        return message if message.startswith(state) else f"{state}: {message}" if message else state
    if state == "training":
        return visible(history.learning_words) or detail or "training"
    words = {"compiling": "compiling the step", "saving": "saving a checkpoint"}.get(state, state)
    if detail:
        words = detail if state == "preparing" else f"{words}: {detail}"
    if event is None:
        return words
    if event.progress is not None and math.isfinite(event.progress) and "%" not in words:
        words += f" {event.progress:.0%}"
    seconds = (clock.now() if now is None else now) - event.time
    if seconds >= 2:
        words += f", {duration(seconds)}"
    return words


def plan_event_lines(event: PlanEvent) -> list[str]:
    """The plan of a run: all of it before its first step, later how long it takes at its measured speed."""
    if event.step:
        time = time_range(event.seconds_low, event.seconds_high)
        return [f"at this speed: about {rough_time(event.seconds)} in total ({time})"]
    expected = None
    if event.expected_low is not None and event.expected_high is not None:
        expected = event.expected_low, event.expected_high
    return plan_lines(
        event.tokens, event.parameters, event.passes, event.seconds, event.seconds_low, event.seconds_high,
        event.steps, expected, event.hint,
    )  # fmt: skip


def event_sentence(event: Event) -> str:
    """An event as a sentence of a log, exactly as recorded: make it safe before showing it."""
    from core.runs import events

    match event:
        case events.RunEvent():
            begin = "started" if event.resumed_from is None else f"resumed from step {event.resumed_from:,}"
            return f"{begin} on {event.device}, {event.parameters:,} parameters"
        case events.PlanEvent():
            return ". ".join(plan_event_lines(event))
        case events.EvaluationEvent():
            losses = f"training {loss(event.train_loss)}, validation {loss(event.validation_loss)}"
            return f"step {event.step:,}: evaluated: {losses}, {loss(event.bits_per_byte)} bits per byte"
        case events.CheckpointEvent():
            best = ", the best so far" if event.best else ""
            return f"step {event.step:,}: saved {event.file}, {bytes_size(event.bytes)}{best}"
        case events.CommandEvent():
            return command_sentence(event.command, not event.accepted, event.message)
        case events.EndEvent():
            return f"step {event.step:,}: {event.reason}: {event.message or 'ended'}"
        case events.ErrorEvent():
            return f"error: {event.message} {event.advice}".strip()
        case events.WarningEvent():
            return f"warning: {event.message}"
    return event.kind


def sample_content(sample: SampleEvent, *, lines: bool = True) -> Content:
    """Prompt in bold, then the generated text."""
    from textual.content import Content

    prompt, text = sample.prompt[:LONGEST_SAMPLE], sample.text[:LONGEST_SAMPLE]
    whole = text if prompt and text.startswith(prompt) else prompt + text
    if not lines:
        # One paragraph: line ends become spaces, everything else stays visible. The prompt is folded together
        # with its text, because the space between them may belong to either.
        prompt, whole = " ".join(prompt.split()), " ".join(whole.split())
    prompt, text = visible(prompt, lines=lines), visible(whole[len(prompt) :], lines=lines)
    return Content.assemble((prompt, "bold"), text)


COMMAND_NAMES = {
    "pause": "Pause",
    "resume": "Continue",
    "stop": "Stop",
    "finish": "Finish",
    "save": "Save checkpoint",
    "evaluate": "Evaluate",
    "sample": "Sample",
}
ACCEPTED = {
    "pause": "Paused",
    "resume": "Training continues",
    "save": "Checkpoint saved",
    "evaluate": "Evaluated",
    "sample": "Sample written",
    "stop": "Stopping",
    "finish": "Cooling down to the end",
}


def command_sentence(command: str, refused: bool, message: str) -> str:
    """The result of a command: `Checkpoint saved at step 719`."""
    message = message.strip().rstrip(".")
    if refused:
        return f"{COMMAND_NAMES.get(command, command)} refused: {message}"
    done = ACCEPTED.get(command, command)
    if not message or message == "done":
        return done
    return f"{done} {message}" if message.startswith("at step") else f"{done}: {message}"


def free_path(path: Path) -> Path:
    """The path itself, or with the first number that isn't taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
