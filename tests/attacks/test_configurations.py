"""Crafted configurations, as they come with a run folder or from elsewhere: one sentence, nothing changed.

Add a line to ATTACKS: a name, what the file says besides a right configuration, a word of the answer. TARGETS
are the names it is given: the one that every start reads, and one on the command line.
"""

from __future__ import annotations

import json

import pytest

from core.config.files import load_file, load_frozen
from core.errors import UserError
from tests.attacks.test_datasets import state
from tests.attacks.test_runs import replace
from tests.awkward.test_awkward_inputs import call

DEEP = json.loads("[" * 500 + "]" * 500)
ATTACKS = {
    "an escape sequence in a key": ({"\x1b]52;c;eA==\x07": 1}, "unknown"),
    "an escape sequence in a value": ({"device": "\x1b]0;owned\x07"}, "device"),
    "a dataset folder with a NUL": ({"dataset_dir": "a\0b"}, "dataset_dir"),
    "a dataset folder that is half a character": ({"dataset_dir": "\ud800"}, "dataset_dir"),
    "a dataset folder of a megabyte": ({"dataset_dir": "x" * 1_000_000}, "dataset_dir"),
    "a layer a byte": ({"n_embd": [16] * 100_000, "n_layer": 100_000}, "n_embd"),
    "a width of a terabyte": ({"n_embd": 10**12}, "n_embd"),
    "a depth without end": ({"n_layer": 10**18}, "n_layer"),
    "a number of 401 digits": ({"max_iters": 10**400}, "max_iters"),
    "a rate of 401 digits": ({"learning_rate": 10**400}, "learning_rate"),
    "a batch of everything": ({"batch_size": 10**15}, "batch_size"),
    "a block of everything": ({"block_size": 10**15}, "block_size"),
    "a vocabulary of everything": ({"vocab_size": 10**15}, "vocab_size"),
    "more threads than there are": ({"threads": 10**9}, "threads"),
    "not a number": ({"learning_rate": float("nan")}, "learning_rate"),
    "an object for a number": ({"max_iters": {"a": 1}}, "max_iters"),
    "a list for a word": ({"tokenizer": ["byte"]}, "tokenizer"),
    "nesting": ({"n_embd": DEEP}, "n_embd"),
    "a truth for a number": ({"n_layer": True}, "n_layer"),
    "a number for a truth": ({"outside_links": 7}, "outside_links"),
    "an encoding that runs code": ({"encoding": "zlib"}, "encoding"),
    "an encoding of bytes": ({"encoding": "hex"}, "encoding"),
    "a tokenizer that is no file of ours": ({"tokenizer": "home/bashrc"}, "tokenizer"),
    "a tokenizer that never ends": ({"tokenizer": "/dev/zero"}, "tokenizer"),
    "a seed out of range": ({"seed": -(10**30)}, "seed"),
    "a prompt of a megabyte": ({"sample_prompt": "y" * 1_000_000}, "sample_prompt"),
    "ten thousand unknown keys": ({f"key_{number}": 1 for number in range(10_000)}, "unknown"),
}
TARGETS = ["current_configuration.json", "config.json"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "bashrc").write_text("alias x=y\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("The old man walked home.\n" * 50)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_crafted_configuration_is_one_answer(tmp_path, home, capsys, attack, target):
    changes, word = ATTACKS[attack]
    path = tmp_path / target
    path.write_text(json.dumps({"dataset_dir": "texts", "tokenizer": "byte"} | changes))
    before = state(tmp_path)
    given = [] if target.startswith("current") else ["--config", target]
    code, said = call(["train", *given, "--device", "tpu"], capsys)  # whatever is right ends at the device
    assert code == 2, said
    assert "Traceback" not in said
    assert "internal error" not in said
    assert len(said) < 40_000
    assert word in said or "tpu" in said, said
    assert state(tmp_path) == before


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_crafted_configuration_of_a_run_is_one_answer(tmp_path, home, attack):
    """Frozen ones are read more kindly, for earlier versions wrote them, but not without bounds."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"dataset_dir": "texts"} | ATTACKS[attack][0]))
    said = ""
    try:
        load_frozen(path)
    except UserError as error:
        said = str(error)
    assert len(said) < 40_000


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "device", "folder"])
def test_a_configuration_in_another_form_is_not_written_through(tmp_path, home, capsys, kind):
    path = tmp_path / "current_configuration.json"
    replace(path, kind, home)
    before = state(home)
    code, said = call(["train", "--device", "tpu"], capsys)
    assert code == 2
    assert "Traceback" not in said
    assert state(home) == before


@pytest.mark.parametrize(
    "content",
    [
        b"a = 1\na = 2",
        b"[a]\n[a]",
        b"\xef\xbb\xbf" * 3,
        b'x = """' + b"y" * 1_000_000,
        b"a." * 3000 + b"b = 1",
        b"x = " + b"{a=" * 900 + b"1" + b"}" * 900,
        b"\0" * 100,
        b"x = 1" * 1_000_000,
    ],
)  # fmt: skip
def test_toml_that_upsets_its_parser_is_one_sentence(tmp_path, content):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_file(path)
    assert len(str(refused.value)) < 40_000
