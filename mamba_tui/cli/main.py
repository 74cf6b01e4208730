"""The command line `mamba-tui`: one parser. Each command has its own module, imported when it is called."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata

from core.errors import UserError
from mamba_tui.cli.arguments import EXIT_BAD_INPUT, EXIT_INTERRUPTED, Parser, whole_number
from mamba_tui.cli.help import EXIT_CODES, examples, overview
from mamba_tui.cli.run_options import add_run_options, add_run_place
from mamba_tui.cli.streams import leave_quietly, prepare_streams, say_error

ABOUT = "Train small hybrid Mamba and attention language models on your own text."
EXIT_FAILURE = 1
TRACEBACK_VARIABLE = "MAMBA_TUI_TRACEBACK"

# command -> the module whose `run(arguments) -> exit code` implements it
MODULES = {
    "launch": "mamba_tui.cli.launch",
    "train": "mamba_tui.cli.launch",
    "generate": "mamba_tui.cli.generate",
    "eval": "mamba_tui.cli.eval",
    "attach": "mamba_tui.cli.launch",
    "runs": "mamba_tui.cli.runs",
    "stop": "mamba_tui.cli.steer",
    "pause": "mamba_tui.cli.steer",
    "resume": "mamba_tui.cli.steer",
    "finish": "mamba_tui.cli.steer",
    "save": "mamba_tui.cli.steer",
    "logs": "mamba_tui.cli.steer",
    "compress": "mamba_tui.cli.compress",
    "decompress": "mamba_tui.cli.compress",
    "embed": "mamba_tui.cli.embed",
    "inspect": "mamba_tui.cli.inspect",
    "similar": "mamba_tui.cli.similar",
    "data": "mamba_tui.cli.data",
    "bench": "mamba_tui.cli.bench",
    "sweep": "mamba_tui.cli.sweep",
    "completion": "mamba_tui.cli.completion",
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
        # The reader of our output is gone (`| head`).
        leave_quietly()
        return EXIT_FAILURE
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Report an unexpected error in one sentence. Returns the exit code."""
    if os.environ.get(TRACEBACK_VARIABLE):
        raise error
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename} cannot be used" if error.filename else "reading or writing failed"
        say_error(f"mamba-tui: {where}: {error.strerror}")
        leave_quietly()  # writing the rest at exit would fail again
        return EXIT_FAILURE
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename}, line {frame.lineno}"
    say_error(
        f"mamba-tui: internal error: {type(error).__name__}: {error} ({place}); "
        f"with {TRACEBACK_VARIABLE}=1 shows the traceback"
    )
    return EXIT_FAILURE


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command and option."""
    parser: argparse.ArgumentParser = Parser(
        prog="mamba-tui",
        usage="mamba-tui [COMMAND] [OPTION ...]",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"mamba-tui {_version()}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog="mamba-tui", help=argparse.SUPPRESS
    )

    launch = commands.add_parser("launch", help="open the console: design, train, generate (the default)")
    add_run_options(launch)
    launch.add_argument("--no-ui", action="store_true", help="train without the console, as plain text")
    launch.add_argument("--read-only", action="store_true", help="watch only: send no commands to runs")
    from mamba_tui.cli.eval import add_parser as add_eval
    from mamba_tui.cli.generate import add_parser as add_generate
    from mamba_tui.cli.plan import add_plan_options
    from mamba_tui.cli.runs import add_parser as add_runs
    from mamba_tui.cli.sweep import add_sweep_options

    train = commands.add_parser("train", help="train as plain text, without the console")
    add_run_options(train)
    add_plan_options(train)
    add_sweep_options(train)
    train.set_defaults(no_ui=True, read_only=False)
    launch.set_defaults(sweep=[], after=None)
    for command in (launch, train):
        command.add_argument(
            "--detach", action="store_true", help="start training, print the run's name and return"
        )

    attach = commands.add_parser("attach", help="watch a run, wherever it was started")
    attach.add_argument("run", metavar="RUN", help="name of the run")
    add_run_place(attach)
    attach.add_argument("--no-ui", action="store_true", help="watch as plain text instead of in the console")
    attach.add_argument("--read-only", action="store_true", help="watch only")

    add_generate(commands)
    add_eval(commands)
    add_runs(commands)
    for name, text in {
        "stop": "save a checkpoint and end a run",
        "pause": "pause a run after its current step",
        "resume": "continue a paused run",
        "finish": "finish a run: cool its learning rate down to zero, evaluate, save",
        "save": "save a checkpoint of a run now",
    }.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("run", metavar="RUN", help="name of the run")
        add_run_place(command)
    logs = commands.add_parser("logs", help="show what happened in a run")
    logs.add_argument("run", metavar="RUN", help="name of the run")
    logs.add_argument(
        "--lines",
        type=whole_number,
        default=50,
        metavar="N",
        help="number of lines from the end (default 50)",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing until the run ends")
    add_run_place(logs)

    from mamba_tui.cli.bench import add_parser as add_bench
    from mamba_tui.cli.completion import add_parser as add_completion
    from mamba_tui.cli.compress import add_parser as add_compression
    from mamba_tui.cli.data import add_parser as add_data
    from mamba_tui.cli.embed import add_parser as add_embed
    from mamba_tui.cli.inspect import add_parser as add_inspect
    from mamba_tui.cli.similar import add_parser as add_similar
    from mamba_tui.cli.sweep import add_parser as add_sweep

    add_sweep(commands)
    add_embed(commands)
    add_inspect(commands)
    add_similar(commands)
    add_compression(commands)
    add_data(commands)
    add_bench(commands)
    add_completion(commands, parser)
    summaries = {action.dest: action.help or "" for action in commands._get_subactions()}
    parser.description = f"{ABOUT}\n{overview(summaries)}\n\nmamba-tui COMMAND --help lists its options."
    for name, command in commands.choices.items():
        command.description = command.description or f"{summaries[name][:1].upper()}{summaries[name][1:]}."
        command.epilog = examples(name)
    return parser


def _version() -> str:
    try:
        return metadata.version("mamba-tui")
    except metadata.PackageNotFoundError:
        return "from source"


if __name__ == "__main__":
    sys.exit(main())
