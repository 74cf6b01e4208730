"""The table in docs/shelf-size.md, made from the rules in `core/config/plan.py`.

`python -m mamba_tui.backend.shelf_table` updates the page; a test compares the two.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from core.config.changes import replace
from core.config.files import preset
from core.config.plan import SHAPES, Plan, TextSize, plan, seconds_by
from core.config.speed import Speeds
from core.data.tokenizer.vocabulary import auto_vocabulary_size
from core.system.files import write_atomic
from mamba_tui.backend.run_estimate import bytes_per_token

PAGE = Path(__file__).resolve().parents[2] / "docs" / "shelf-size.md"
HEAD = (
    "| text | machine, time | layers | parameters | dropout | passes | steps | expected loss | shape |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
MEGABYTES = (0.1, 0.5, 1.0, 10.0, 50.0)
MACHINES = {"2 CPU cores": Speeds("", "cpu", 2), "one H100": Speeds("", "cuda", 1)}
"""Reference machines, with the speeds of the formula alone."""
TIMES = (("2 CPU cores", 10.0), ("one H100", 1.0), ("one H100", 10.0))


def table() -> str:
    """A row for each size of text and each machine with its time."""
    return HEAD + "".join(_row(size, *where) for size in MEGABYTES for where in TIMES)


def planned(megabytes: float, machine: str, minutes: float) -> Plan:
    """What the preset `book` would be for so much text, there, in so many minutes."""
    speeds = MACHINES[machine]
    cuda = speeds.kind == "cuda"
    config = preset("book", cuda=cuda)
    train = megabytes * 1e6 * (1 - config.data.validation_fraction)
    vocabulary = auto_vocabulary_size(round(train))
    tokens = round(train / bytes_per_token(vocabulary))
    validation = round((megabytes * 1e6 - train) / bytes_per_token(vocabulary))
    return plan(
        replace(config, time_budget=minutes),
        TextSize(round(train), tokens, exact=False),
        cuda=cuda,
        vocab_size=vocabulary,
        seconds=seconds_by(speeds, vocabulary, (tokens, validation)),
    )


def _row(megabytes: float, machine: str, minutes: float) -> str:
    one = planned(megabytes, machine, minutes)
    model = one.config.model
    widths = " + ".join(f"{len(list(same))} x {width}" for width, same in groupby(model.n_embd))
    shapes = SHAPES["cuda" if one.cuda else "cpu"]
    measured = any(shape.measured and shape.widths == model.n_embd for _, shape in shapes)
    loss = "-" if one.expected is None else f"{one.expected[0]:.2f} to {one.expected[1]:.2f}"
    cells = (
        f"{megabytes:g} MB",
        f"{machine}, {minutes:g} min",
        widths,
        f"{one.parameters / 1e6:.1f} M",
        f"{model.dropout:g} + {model.mixer_dropout:g}",
        f"{one.passes:.1f}",
        f"{one.steps:,}",
        loss,
        "measured" if measured else "rule",
    )
    return f"| {' | '.join(cells)} |\n"


def with_table(page: str) -> str:
    """The page with its table replaced."""
    start = page.index(HEAD)
    return page[:start] + table() + page[page.index("\n\n", start) + 1 :]


if __name__ == "__main__":
    write_atomic(PAGE, with_table(PAGE.read_text()).encode(), private=False)
    print(f"wrote {PAGE}")
