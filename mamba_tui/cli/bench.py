"""`mamba-tui bench`: how fast a configuration trains and generates on this machine."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from core.config.schema import flat
from core.errors import UserError
from core.system.processes import module_command, module_environment
from mamba_tui.cli.arguments import number
from mamba_tui.cli.run_options import add_configuration_options, add_ranks_option, configuration
from mamba_tui.widgets.numbers import bytes_size, compact

BENCH_ENDED = "the benchmark process failed; the lines above say why"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="measure how fast a configuration trains and generates here")
    add_configuration_options(parser)
    add_ranks_option(parser)
    parser.add_argument(
        "--seconds",
        type=number,
        default=10.0,
        metavar="S",
        help="seconds to spend on training steps (default 10)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure in another process and print the figures. Returns the exit code."""
    if not 0 < arguments.seconds <= 3600:
        raise UserError(f"--seconds is {arguments.seconds:g}; accepted: a number above 0 and at most 3600")
    config, _ = configuration(arguments)
    request = json.dumps({"config": flat(config), "seconds": arguments.seconds})
    if not arguments.json:
        print("Measuring; nothing else should be running on this device.", file=sys.stderr)
    process = subprocess.run(
        module_command("core.training.benchmark"),
        env=module_environment(),
        input=request,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode == 2:
        return 2
    if process.returncode:
        raise UserError(BENCH_ENDED)
    figures = json.loads(process.stdout)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    else:
        _show(figures)
    return 0


def _show(figures: dict[str, Any]) -> None:
    console = Console(highlight=False)
    training, parts = figures["training"], figures["parts_ms"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    table.add_row("device", "", f"{figures['device']}, torch {figures['torch']}")
    table.add_row(
        "model", compact(figures["parameters"]), f"parameters, vocabulary {figures['vocab_size']:,}"
    )
    if figures["ranks"] > 1:
        table.add_row("ranks", str(figures["ranks"]), "train together; the other figures are of one")
    table.add_row("training", f"{training['tokens_per_second']:,.0f}", "tokens/s")
    table.add_row("", f"{training['step_ms']:.2f}", f"ms per step of {figures['tokens_per_step']:,} tokens")
    table.add_row("", f"{training['first_step_seconds']:.1f}", "s until the first step is done")
    table.add_row("data wait", f"{training['data_wait_share']:.2%}", "of a step")
    table.add_row(
        "utilization",
        f"{training['utilization']:.1%}",
        f"of {compact(figures['matrix_flops_per_second'])}FLOP/s, what a large matrix product reaches here",
    )
    table.add_row("memory", bytes_size(figures["memory_bytes"]), "at the peak")
    table.add_row(
        "writing", f"{figures['decoding']['tokens_per_second']:,.0f}", "tokens/s, one text at a time"
    )
    console.print(table)
    console.print("\nParts of a plain step, waiting after each:")
    total = sum(parts.values())
    split = Table(box=None, show_header=False, pad_edge=False)
    for name, value in parts.items():
        split.add_row(name, f"{value:.2f} ms", f"{value / total:.0%}")
    console.print(split)
