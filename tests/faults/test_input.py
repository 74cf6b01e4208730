"""Hypothesis on every file that somebody else may have written: sentences, never tracebacks."""

from __future__ import annotations

import json
import string

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config.schema import SETTINGS
from core.errors import UserError
from core.runs import (
    Follower,
    Run,
    is_alive,
    list_runs,
    prepare_run,
    preview,
    send_command,
    status,
)
from core.runs.lock import read_holder

pytestmark = pytest.mark.faults

VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(string.printable, max_size=12)
    | st.sampled_from(["mamba", "standard", "auto", "cpu"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=4,
)
GROUPS = {
    group: [key for key, item in SETTINGS.items() if item.group == group] for group in ("model", "data")
}
TABLES = st.fixed_dictionaries(
    {},
    optional={
        group: st.dictionaries(st.sampled_from(keys) | st.text(string.ascii_letters, max_size=6), VALUES)
        for group, keys in GROUPS.items()
    },
)
NOISE = st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))


@settings(deadline=None, max_examples=150)
@given(tables=TABLES)
def test_any_frozen_configuration_is_used_or_refused_in_words(tmp_path_factory, tables):
    run = Run(tmp_path_factory.mktemp("run"))
    run.config_path.write_bytes(tomli_w.dumps(tables).encode("utf-8", "replace"))
    try:
        config = run.config()
    except UserError:
        with pytest.raises(UserError, match=r"config\.toml"):
            prepare_run(run.path.parent, run.name, None)
    else:
        assert prepare_run(run.path.parent, run.name, config).exists


def nearly(value: dict[str, object]) -> st.SearchStrategy[bytes]:
    """A file that is almost right: some fields have arbitrary values."""
    odd = st.dictionaries(st.sampled_from(list(value)), VALUES | st.none(), max_size=3)
    return odd.map(lambda changes: json.dumps({**value, **changes}).encode())


HOLDER = {"pid": 1, "boot_id": "b", "process_start": "1", "host": "h", "since": 1.0, "method": "heartbeat"}
MANIFEST = {"step": 7, "bytes": 3, "sha256": "00", "time": 1.0, "validation_loss": 1.0}
RUN_EVENT = {"kind": "run", "time": 1.0, "resumed_from": 3, "pid": 1, "started": 1.0}
END_EVENT = {"kind": "end", "time": 1.0, "reason": "finished", "step": 3, "message": "m", "checkpoint": None}


@settings(deadline=None, max_examples=150)
@given(
    lock=NOISE | nearly(HOLDER),
    events=st.lists(NOISE | nearly(RUN_EVENT) | nearly(END_EVENT), max_size=5),
    manifest=NOISE | nearly(MANIFEST),
    log=NOISE,
    config=NOISE,
)
def test_no_run_directory_upsets_who_looks_at_it(tmp_path_factory, lock, events, manifest, log, config):
    root = tmp_path_factory.mktemp("runs")
    run = Run(root / "run")
    run.path.mkdir()
    run.lock_path.write_bytes(lock)
    run.events_path.write_bytes(b"\n".join(events))
    (run.path / "checkpoint_step_7.json").write_bytes(manifest)
    (run.path / "checkpoint_step_7.pt").write_bytes(b"abc")
    run.log_path.write_bytes(log)
    run.config_path.write_bytes(config)
    found = status(run)
    assert found.age >= 0
    assert list_runs(root) == [run]
    assert run.checkpoints() is not None
    read_holder(run.lock_path)
    Follower(run.events_path).poll()
    preview(run.events_path)
    if not is_alive(run):
        with pytest.raises(UserError):
            send_command(run, "stop")
