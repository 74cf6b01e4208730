"""`mamba-tui generate`: a checkpoint writes to the terminal, once or turn by turn.

The model lives in a generator process (`core.generation.server`); this side only reads keys and prints text,
so it starts at once and never imports torch.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.runs import Run, list_runs
from core.system.hardware import resolve_device
from core.system.json_lines_client import BlockingClient
from core.system.processes import module_command
from mamba_tui.cli.run_options import checkpoints_folder
from mamba_tui.widgets.safe_text import visible

HISTORY = Path.home() / ".local" / "state" / "mamba-tui" / "prompt_history"
INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Generate once for --prompt, otherwise hold a conversation. Returns the exit code."""
    sampling = _sampling(arguments)
    checkpoint = _checkpoint(arguments)
    resolve_device(arguments.device)
    with BlockingClient(module_command("core.generation.server"), "the generator") as generator:
        request = generator.send("load", checkpoint=str(checkpoint), device=arguments.device)
        loaded = next(event for event in generator.events(request) if event["event"] == "loaded")
        step, parameters = loaded["step"], loaded["parameters"]
        _note(f"{checkpoint.parent.name}, step {step:,}, {parameters:,} parameters, {loaded['device']}")
        if arguments.prompt is not None:
            _show(arguments.prompt)
            return _write(generator, arguments.prompt, sampling, turn=False)
        return _converse(generator, sampling)


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    checks = [
        ("--max-new-tokens", arguments.max_new_tokens, arguments.max_new_tokens >= 1, "at least 1"),
        ("--temperature", arguments.temperature, 0 <= arguments.temperature <= 100, "a number from 0 to 100"),
        ("--top-k", arguments.top_k, arguments.top_k >= 0, "a number of at least 0, 0 = all"),
        ("--top-p", arguments.top_p, 0 < arguments.top_p <= 1, "a number above 0 and at most 1"),
        ("--min-p", arguments.min_p, 0 <= arguments.min_p <= 1, "a number from 0 to 1"),
        ("--repetition-penalty", arguments.repetition_penalty, 0 < arguments.repetition_penalty <= 100,
         "a number above 0 and at most 100"),
        ("--seed", arguments.seed, arguments.seed is None or 0 <= arguments.seed < 1 << 63,
         "a whole number from 0 to 2^63 - 1"),
    ]  # fmt: skip
    for flag, value, good, accepted in checks:
        if not good:
            raise UserError(f"{flag} is {value}; accepted: {accepted}")
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 31)
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": seed,
        "alternatives": 0,
    }


def _checkpoint(arguments: argparse.Namespace) -> Path:
    """The checkpoint that the options name: a file, or the newest of a run."""
    if arguments.checkpoint:
        path = Path(arguments.checkpoint)
        if not path.is_file():
            raise UserError(
                f"--checkpoint is {path}, which is not a file; accepted: a checkpoint_step_<N>.pt"
            )
        return path
    root = checkpoints_folder(arguments)
    runs = {run.name: run for run in list_runs(root)}
    if arguments.run:
        if arguments.run not in runs:
            known = ", ".join(sorted(runs)) or "there are none yet; `mamba-tui launch` makes one"
            raise UserError(f'--run is "{arguments.run}", which is not in {root}; accepted: {known}')
        return _newest(runs[arguments.run]) or _no_checkpoint(arguments.run)
    newest = [found for one in runs.values() if (found := _newest(one))]
    if not newest:
        raise UserError(f"no run in {root} has a checkpoint yet; train one first: mamba-tui launch")
    return max(newest, key=lambda found: found.stat().st_mtime)


def _newest(one: Run) -> Path | None:
    checkpoints = [info for info in one.checkpoints() if not info.problem]
    return checkpoints[-1].path if checkpoints else None


def _no_checkpoint(name: str) -> Path:
    raise UserError(f'the run "{name}" has no checkpoint yet; save one: mamba-tui save {name}')


def _write(generator: BlockingClient, prompt: str, sampling: dict[str, Any], *, turn: bool) -> int:
    """Stream one generation to the terminal; Ctrl-C ends it, keeping what was written."""
    request = generator.send("generate", prompt=prompt, **{"continue": turn}, **sampling)
    done: dict[str, Any] = {}
    with _stopping_on_interrupt(generator, request) as interrupted:
        for event in generator.events(request):
            if event["event"] == "token":
                _show(event["text"])
            elif event["event"] == "done":
                done = event
                break
    print(flush=True)
    speed = f"{done['tokens']} tokens, {done.get('tokens_per_second') or 0:,.0f} tokens/s"
    _note(f"{speed}, seed {sampling['seed']}")
    return INTERRUPTED if interrupted else 0


@contextlib.contextmanager
def _stopping_on_interrupt(generator: BlockingClient, request: int) -> Iterator[list[int]]:
    """Turn Ctrl-C into a stop request; a second one ends the program. Yields the interrupts seen.

    A KeyboardInterrupt in the middle of a read could lose half a line, so none is raised at first.
    """
    interrupts: list[int] = []

    def stop(number: int, _: object) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt
        generator.cancel(request)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _converse(generator: BlockingClient, sampling: dict[str, Any]) -> int:
    """Prompt after prompt, each continuing the model's state; /new starts over, /quit or Ctrl-D ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        _load_history()
        _note("each turn continues the text; /new starts over, Ctrl-C ends a turn, /quit or Ctrl-D leaves")
    continues = False
    while True:
        try:
            prompt = input("\n> " if interactive else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            break
        if prompt.strip() in ("/quit", "/exit"):
            break
        if prompt.strip() == "/new":
            continues = False
            _note("a new text begins")
            continue
        _write(generator, prompt, sampling, turn=continues)
        sampling["seed"] += 1
        continues = True
    if interactive:
        _save_history()
    return 0


def _show(text: str) -> None:
    print(visible(text, lines=True), end="", flush=True)


def _note(text: str) -> None:
    """A remark about the text, kept out of the text: on standard error, dim on a terminal."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{visible(text)}{plain}", file=sys.stderr, flush=True)


def _load_history() -> None:
    try:
        import readline

        readline.set_history_length(1000)
        readline.read_history_file(HISTORY)
    except (ImportError, OSError):
        return


def _save_history() -> None:
    try:
        import readline

        HISTORY.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(HISTORY)
    except (ImportError, OSError):
        return
