"""The command line, `mamba-tui`: one parser, each command in a module of its own, imported when called."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata

from core.errors import UserError
from mamba_tui.cli.arguments import EXIT_BAD_INPUT, Parser, number, whole_number
from mamba_tui.cli.run_options import add_run_options, add_run_place
from mamba_tui.cli.streams import leave_quietly, prepare_streams, say_error

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
TRACEBACK_VARIABLE = "MAMBA_TUI_TRACEBACK"

# command -> the module whose `run(arguments) -> exit code` carries it out
MODULES = {
    "launch": "mamba_tui.cli.launch",
    "train": "mamba_tui.cli.launch",
    "generate": "mamba_tui.cli.generate",
    "attach": "mamba_tui.cli.launch",
    "runs": "mamba_tui.cli.runs",
    "stop": "mamba_tui.cli.runs",
    "pause": "mamba_tui.cli.runs",
    "resume": "mamba_tui.cli.runs",
    "save": "mamba_tui.cli.runs",
    "logs": "mamba_tui.cli.runs",
    "data": "mamba_tui.cli.data",
    "bench": "mamba_tui.cli.bench",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0 done, 1 failure, 2 bad input, 130 interrupted."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "launch")
    try:
        if any("\0" in argument for argument in given):
            raise UserError("an argument holds a NUL character; accepted: arguments without it")
        parsed = build_parser().parse_args(given)
        code = int(import_module(MODULES[parsed.command]).run(parsed))
        sys.stdout.flush()
        return code
    except UserError as error:
        say_error(f"mamba-tui: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`).
        leave_quietly()
        return EXIT_FAILURE
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Say in one sentence what nobody thought of. Returns the exit code."""
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename} cannot be used" if error.filename else "reading or writing failed"
        say_error(f"mamba-tui: {where}: {error.strerror}")
        leave_quietly()  # what is still unwritten would fail once more at the exit
        return EXIT_FAILURE
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename}, line {frame.lineno}"
    say_error(
        f"mamba-tui: internal error: {type(error).__name__}: {error} ({place}); "
        f"with {TRACEBACK_VARIABLE}=1 all of it is shown"
    )
    return EXIT_FAILURE


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command and option."""
    parser: argparse.ArgumentParser = Parser(
        prog="mamba-tui",
        description="Train small hybrid Mamba and attention language models on your own books.",
        epilog="Without a command: launch.",
    )
    parser.add_argument("--version", action="version", version=f"mamba-tui {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    launch = commands.add_parser("launch", help="open the console (or train headless with --no-ui)")
    add_run_options(launch)
    launch.add_argument("--no-ui", action="store_true", help="train without the console, show progress here")
    launch.add_argument("--read-only", action="store_true", help="watch only: the console commands no run")
    train = commands.add_parser("train", help="train without the console: launch --no-ui")
    add_run_options(train)
    train.set_defaults(no_ui=True, read_only=False)
    for command in (launch, train):
        command.add_argument(
            "--detach", action="store_true", help="start training, print the run's name, return"
        )

    attach = commands.add_parser("attach", help="follow a run: in the console, or here with --no-ui")
    attach.add_argument("run", metavar="RUN", help="name of the run")
    add_run_place(attach)
    attach.add_argument("--no-ui", action="store_true", help="show progress here instead of the console")
    attach.add_argument("--read-only", action="store_true", help="watch only")

    _add_generate(commands)
    runs = commands.add_parser("runs", help="list the runs: state, step, loss, age, size")
    add_run_place(runs)
    for name, text in {
        "stop": "save a run, then end it",
        "pause": "let a run wait after its current step",
        "resume": "let a paused run go on",
        "save": "have a run write a checkpoint now",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="RUN", help="name of the run")
        add_run_place(command)
    logs = commands.add_parser("logs", help="show what a run's trainer printed")
    logs.add_argument("run", metavar="RUN", help="name of the run")
    logs.add_argument(
        "--lines", type=whole_number, default=50, metavar="N", help="lines from the end (default 50)"
    )
    add_run_place(logs)

    from mamba_tui.cli.bench import add_parser as add_bench
    from mamba_tui.cli.data import add_parser as add_data

    add_data(commands)
    add_bench(commands)
    return parser


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser(
        "generate",
        help="let a checkpoint write",
        description="Without --prompt: an interactive prompt, where each turn continues the text so far.",
    )
    source = generate.add_mutually_exclusive_group()
    source.add_argument(
        "--run", metavar="NAME", help="run whose newest checkpoint writes (default: newest run)"
    )
    source.add_argument("--checkpoint", metavar="PATH", help="a checkpoint_step_<N>.pt")
    add_run_place(generate)
    generate.add_argument("--prompt", metavar="TEXT", help="text to continue; then end")
    generate.add_argument("--max-new-tokens", type=whole_number, default=300, metavar="N", help="default 300")
    generate.add_argument(
        "--temperature", type=number, default=0.8, metavar="T", help="0 = greedy; default 0.8"
    )
    generate.add_argument(
        "--top-k", type=whole_number, default=0, metavar="K", help="only the K likeliest, 0 = all"
    )
    generate.add_argument(
        "--top-p", type=number, default=1.0, metavar="P", help="only the likeliest P of probability"
    )
    generate.add_argument(
        "--min-p", type=number, default=0.0, metavar="P", help="drop below P times the likeliest"
    )
    generate.add_argument("--repetition-penalty", type=number, default=1.0, metavar="R", help="1 = none")
    generate.add_argument("--seed", type=whole_number, metavar="S", help="same seed, same text")
    generate.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, mps")


def _version() -> str:
    try:
        return metadata.version("mamba-tui")
    except metadata.PackageNotFoundError:
        return "from source"


if __name__ == "__main__":
    sys.exit(main())
