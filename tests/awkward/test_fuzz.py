"""Command lines, configuration, event and text files made up by Hypothesis, through the command line itself.

No traceback, exit codes as the README says, nothing of the user's changed, no case that takes long.
`MAMBA_TUI_FUZZ=10000 pytest tests/awkward/test_fuzz.py` spreads ten thousand cases over the four kinds;
without it there are enough to notice a slip.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import string
import subprocess
import sys
import time
import typing

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from core.config.schema import SETTINGS
from core.errors import UserError
from core.runs import prepare_run
from core.runs.events import KINDS
from mamba_tui.cli.main import MODULES
from tests.awkward.test_awkward_inputs import call, contents
from tests.run_tools import tiny

CASES = int(os.environ.get("MAMBA_TUI_FUZZ", "400"))
SLOWEST_SECONDS = 5.0  # of this process's own time; far above any case, far below a hang


def fuzz(share):
    """Settings for a test that has this share of all cases."""
    return settings(
        deadline=None,
        max_examples=max(20, int(CASES * share)),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        database=None,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's folder: texts, a run that has ended, files of other programs. No process can be started."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("The old man walked home and the rain fell.\n" * 50)
    (folder / "dataset").mkdir()
    (folder / "dataset" / "b.txt").write_text("But she sat by the river.\n" * 50)
    (folder / "notes.txt").write_text("precious")
    (folder / "current_configuration.json").write_text('{"configuration_version": 1, "config": {}}\n')
    run = prepare_run(folder / "checkpoints", "old", tiny(folder / "texts"))
    run.events_path.write_text(json.dumps(example_of("run")) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(subprocess, "Popen", no_process)
        yield folder


def no_process(*arguments, **options):
    raise UserError("a process would have been started")


def run_case(home, arguments, capsys, codes=(0, 2)):
    """Call the command and hold what is promised of every call."""
    before = contents(home)
    began = time.process_time()
    code, answer = call(arguments, capsys)
    seconds = time.process_time() - began
    after = contents(home)
    event(f"exit code {code}")
    assert code in codes, (code, answer)
    assert "Traceback" not in answer
    assert "internal error" not in answer, answer
    assert len(answer) < 200_000
    assert {name: after.get(name) for name in before} == before, "something of the user's changed"
    assert seconds < SLOWEST_SECONDS, (seconds, arguments)
    return code, answer


WORDS = st.sampled_from(
    ["", "-", "--", "..", ".", "/", "texts", "old", "nan", "1e309", "-0", "1_0", "٣", "x" * 300, "9" * 400,
     "[", "=", "~", "a\0b", "\udcff", "\x1b]0;x\x07", "null", "true", "/dev/null",
     "/proc/self/mem", "cuda:9", "auto", "-1"]
)  # fmt: skip
ANYTHING = (
    WORDS
    | st.text(max_size=12)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(), max_size=5)
)
KEYS = st.sampled_from(sorted(SETTINGS))
ASSIGNMENT = st.builds("{}={}".format, KEYS | st.text(max_size=6), ANYTHING)
OPTIONS = st.sampled_from(
    [
        "--run",
        "--checkpoints",
        "--dataset",
        "--device",
        "--max-iters",
        "--config",
        "--preset",
        "--resume",
        "--fresh",
        "--detach",
        "--no-ui",
        "--read-only",
        "--lines",
        "--seconds",
        "--json",
        "--all",
        "--at",
        "--tokens",
        "--prompt",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repetition-penalty",
        "--seed",
        "--max-new-tokens",
        "--checkpoint",
        "--sweep",
        "--random",
        "--prune",
        "--at-once",
        "--tag",
        "--after",
        "--forget-split",
        "--help",
    ]
)
ARGUMENT = (
    st.tuples(OPTIONS, ANYTHING)
    | st.tuples(OPTIONS)
    | st.tuples(st.sampled_from(["--set", "--sweep"]), ASSIGNMENT)
    | st.tuples(ANYTHING)
    | st.tuples(st.sampled_from(["info", "prepare", "sample", "old", "RUN"]))
)
COMMAND = st.sampled_from(sorted(MODULES)) | ANYTHING


@fuzz(0.4)
@given(command=COMMAND, arguments=st.lists(ARGUMENT, max_size=5))
def test_command_lines(home, capsys, command, arguments):
    if command in ("runs", "data", "train", "sweep", "launch", "stop"):
        arguments = [*arguments, ("--checkpoints", "checkpoints")] if len(arguments) % 2 else arguments
    run_case(home, [command, *(part for argument in arguments for part in argument)], capsys)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 10).map(lambda digits: 10 ** (10**4 if digits > 8 else digits * 50))
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["mamba", "mamba2", "standard", "auto", "cpu", "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
GROUP = st.sampled_from(["config", "model", "training", "data", "hardware"])
TABLE = st.dictionaries(KEYS | st.text(string.ascii_letters, max_size=5), VALUES, max_size=6)
NOISE = st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))


def json_bytes(value):
    """JSON, with integers of any length."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(limit)


CONFIGURATION = (
    NOISE
    | TABLE.map(json_bytes)
    | st.dictionaries(GROUP, TABLE | VALUES, max_size=3).map(json_bytes)
    | st.builds(lambda key, text: f"{key} = {text}\n".encode("utf-8", "replace"), KEYS, ANYTHING)
    | st.builds(
        lambda group, key, text: f"[{group}]\n{key} = {text}".encode("utf-8", "replace"),
        GROUP,
        KEYS,
        ANYTHING,
    )
)


@fuzz(0.3)
@given(content=CONFIGURATION, suffix=st.sampled_from([".json", ".toml"]))
def test_configuration_files(home, capsys, tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"given{suffix}"
    path.write_bytes(content)
    code, _ = run_case(home, ["bench", "--config", str(path), "--json"], capsys)
    assert code == 2
    assert path.read_bytes() == content


def nearly(fields):
    """An event that is almost right: some fields are anything, or missing."""
    odd = st.dictionaries(st.sampled_from([*fields, "kind", "time"]), VALUES, max_size=3)
    return st.builds(lambda changes, gone: {k: v for k, v in {**fields, **changes}.items() if k not in gone},
                     odd, st.sets(st.sampled_from(list(fields)), max_size=2))  # fmt: skip


def example_of(kind):
    """A plain event of a kind, as it is written."""
    plain = {int: 3, float: 1.0, str: "m", bool: True}
    hints = typing.get_type_hints(KINDS[kind])
    fields = {item.name: plain.get(hints[item.name]) for item in dataclasses.fields(KINDS[kind])}
    defaults = {"versions": {}, "config": {}, "changes": {}, "resumed_from": None}
    return {**fields, **{name: defaults[name] for name in fields if name in defaults}, "kind": kind}


EVENT = st.one_of(
    *(nearly(example_of(kind)) for kind in KINDS),
    st.just(example_of("run")),
    st.just(example_of("step")),
    st.just(
        {"kind": "end", "time": 3.0, "reason": "failed", "step": 3, "message": "\x1b[2J", "checkpoint": None}
    ),
).map(json_bytes)
COMMANDS_OF_A_RUN = st.sampled_from(
    [["runs"], ["logs", "r"], ["attach", "r", "--no-ui"], ["stop", "r"], ["sweep", "s"], ["sweep"]]
)


@fuzz(0.2)
@given(
    command=COMMANDS_OF_A_RUN,
    events=st.lists(NOISE | EVENT, max_size=6),
    others=st.dictionaries(
        st.sampled_from(
            ["r/run.lock", "r/trainer.log", "r/checkpoint_step_3.json", "r/config.toml", ".sweeps/s.json"]
        ),
        NOISE | VALUES.map(json_bytes),
        max_size=3,
    ),
    torn=st.booleans(),
)
def test_event_files(home, capsys, tmp_path_factory, command, events, others, torn):
    root = tmp_path_factory.mktemp("root")
    run = prepare_run(root, "r", tiny(home / "texts"))
    run.events_path.write_bytes(b"\n".join(events) + (b"" if torn else b"\n"))
    (root / ".sweeps").mkdir()
    plan = {"format": 1, "prune": True, "at_once": 0, "after": "", "pruned": {}, "restarts": {},
            "variants": [{"run": "r", "changes": {"dropout": 0.1}}]}  # fmt: skip
    (root / ".sweeps" / "s.json").write_text(json.dumps(plan))
    for name, content in others.items():
        (root / name).write_bytes(content)
    before = contents(root)
    run_case(home, [*command, "--checkpoints", str(root)], capsys, codes=(0, 1, 2, 130))
    after = contents(root)
    for made in ("r/control", ".sweeps/s.lock"):
        after.pop(made, None)
        before.pop(made, None)
    assert after == before


NAME = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20
)
TEXT = (
    NOISE
    | st.text(max_size=400).map(lambda text: (text * 20).encode("utf-8", "surrogatepass"))
    | st.builds(
        lambda text, encoding: text.encode(encoding, "replace") * 30,
        st.text(min_size=1, max_size=60),
        st.sampled_from(
            ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1251", "shift_jis", "utf-8-sig", "koi8-r"]
        ),
    )
    | st.just(b"\x1f\x8b\x08broken gzip")
)


@fuzz(0.1)
@given(
    files=st.dictionaries(NAME.map(lambda name: name[:60] + ".txt"), TEXT, min_size=1, max_size=3),
    command=st.sampled_from([["info"], ["prepare"], ["sample", "--tokens", "5"], ["info", "--all"]]),
    more=st.lists(
        st.tuples(st.sampled_from(["strip_gutenberg=false", "unwrap_lines=true", "encoding=cp1251"])),
        max_size=1,
    ),
)
def test_text_files(home, capsys, tmp_path_factory, files, command, more):
    folder = tmp_path_factory.mktemp("shelf")
    for name, content in files.items():
        try:
            (folder / name).write_bytes(content)
        except OSError:  # longer than this file system allows
            continue
    before = {name: value for name, value in contents(folder).items() if name.endswith(".txt")}
    options = [part for (setting,) in more for part in ("--set", setting)]
    run_case(home, ["data", *command, "--dataset", str(folder), "--set", "tokenizer=byte", *options], capsys)
    after = {name: value for name, value in contents(folder).items() if name.endswith(".txt")}
    assert after == before
