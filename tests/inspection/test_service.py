"""The inspection process answers requests about a text, and the command shows the answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import WORD_PATTERN, Tokenizer
from core.errors import UserError
from core.inspection.attention import attention_map
from core.inspection.heat_map import HeatMaps
from core.inspection.memory import effective_attention, recurrence
from core.inspection.report import look_at
from core.inspection.service import InspectionService
from core.inspection.text import _last_start, text_of, typed_text
from core.system.json_lines import Request, Server
from mamba_tui.cli.inspect_tables import show_layers
from mamba_tui.cli.main import main
from tests.compression.checkpoints import SHAPE, model_of, write_checkpoint

ROOT = Path(__file__).parents[2]
TOKENIZER = Tokenizer(
    "auto", WORD_PATTERN, [*(bytes((value,)) for value in range(256)), b" a", b"bc", b" bc", b"\n\n"]
)
TEXT = "One bc a bc.\n\nTwo bc.\n\nThree: é a a"


def ask(service, *requests):
    """The events that answer some requests."""
    lines: list[str] = []
    server = Server([], lines.append)
    for number, (operation, values) in enumerate(requests, 1):
        request = Request(server, {"op": operation, "id": number, **values})
        server._answer_in_turns(request, service.handlers())
    return [json.loads(line) for line in lines]


@pytest.fixture
def service():
    model = model_of(TOKENIZER)
    return InspectionService(
        lambda path, device: (model, TOKENIZER, {"step": 7, "config": flat(build(SHAPE))})
    )


def test_paragraphs_begin_where_their_first_letter_ends():
    text = typed_text(TEXT, TOKENIZER, 100)
    ids = text.tokens.tolist()
    assert ids[0] == TOKENIZER.eot
    for token, letter in zip(text.paragraphs, "TT", strict=True):
        assert TOKENIZER.decode(ids[1:token]).endswith("\n\n")
        assert TOKENIZER.decode(ids[token : token + 1]).startswith(letter)
    two = text_of("two", np.concatenate((text.tokens, text.tokens)), TOKENIZER, 1000)
    assert two.starts.sum() == 2
    assert two.paragraphs.tolist() == [*text.paragraphs, *(text.paragraphs + len(ids))]
    with pytest.raises(UserError, match="no text"):
        typed_text("", TOKENIZER, 10)


def test_the_validation_text_begins_where_enough_of_it_follows():
    assert _last_start([0, 10, 90], 100, 20) == 10
    assert _last_start([0, 10, 80], 100, 20) == 80
    assert _last_start([0], 5, 20) == 0
    assert _last_start([], 50, 20) == 30


def test_a_picture_is_a_part_of_the_whole_map():
    model = model_of(TOKENIZER).double()
    seen = look_at(model, typed_text(TEXT, TOKENIZER, 100))
    maps = HeatMaps(seen)
    for layer, kind in enumerate(model.config.attention_type):
        if kind == "standard":
            whole = attention_map(seen, layer)
        else:
            memory = recurrence(seen, layer)
            whole = effective_attention(memory, torch.arange(memory.groups))
        assert maps.groups(layer) == len(whole)
        for group in (-1, len(whole) - 1):
            wanted = whole.abs().mean(0) if group < 0 else whole[group].abs()
            found = maps.around(layer, group, 12, 4, 6)
            assert (found["first_query"], found["first_key"]) == (9, 7)
            assert np.allclose(found["rows"], wanted[9:13, 7:13].numpy(), atol=1e-6)
            row = wanted[12]
            assert np.allclose(found["row"], row.numpy(), atol=1e-6)
            shares = (row / row.sum()).tolist()
            assert found["distance"] == pytest.approx(sum(p * (12 - s) for s, p in enumerate(shares)))
            nats = -sum(p * math.log(p) for p in shares if p)
            assert found["entropy"] == pytest.approx(nats)
        assert np.allclose(maps.rows(layer, 5)["rows"], whole[:, 5].numpy())


def test_a_session_loads_reads_and_looks(service):
    nothing = ask(service, ("read", {"text": "x"}), ("lens", {"token": 0}))
    assert [event["event"] for event in nothing] == ["error", "error"]
    loaded, text, layers, lens, picture, *memory = ask(
        service,
        ("load", {"checkpoint": "run/checkpoint.pt", "device": "cpu"}),
        ("read", {"text": TEXT}),
        ("layers", {}),
        ("lens", {"token": 3, "top": 2}),
        ("map", {"layer": 0, "group": -1, "token": 5, "queries": 3, "keys": 9}),
        *(("memory", {"layer": layer}) for layer in range(3)),
        ("lens", {"token": 1000}),
        ("map", {"layer": 0, "group": 99, "token": 5, "queries": 3, "keys": 9}),
    )
    kinds = [one["kind"] for one in loaded["layers"]]
    assert len(text["tokens"]) == len(TOKENIZER.encode(TEXT)) + 1
    assert [one["kind"] for one in layers["layers"]] == kinds
    assert len(layers["lens_loss"]) == len(kinds) + 1
    assert len(lens["layers"]) == len(kinds) + 1
    assert len(lens["layers"][0]["top"]) == 2
    assert len(picture["rows"]) == 3
    *answers, outside, unknown = memory
    for kind, one in zip(kinds, answers):
        if kind == "standard":
            assert "attention layer" in one["message"]
        else:
            assert sum(one["histogram"]) == one["states"]
            assert one["paragraphs"]["starts"] == 2
            assert 0 in one["paragraphs"]["offsets"]
            assert len(one["state_norm"]) == len(text["tokens"])
            assert len(one["slowest"]) == loaded["layers"][kinds.index(kind)]["groups"]
    assert "accepted: a whole number from 0" in outside["message"]
    assert "accepted: -1 for all" in unknown["message"]


def test_the_command_shows_layers_and_says_what_is_wrong(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "run", tokenizer=TOKENIZER)
    book = tmp_path / "book.txt"
    book.write_text(TEXT)
    given = ["inspect", "--checkpoint", str(checkpoint), "--device", "cpu", "--text"]
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "mamba_tui", *given, str(book), "--token", "4", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    report = json.loads(answer.stdout)
    assert [one["kind"] for one in report["layers"]] == SHAPE["attention_type"]
    show_layers(report)
    out = capsys.readouterr().out
    for words in ("half-life", "embedding", "after token 4", "the waist, layer 1", "mean distance"):
        assert words in out
    assert main([*given, str(tmp_path / "none.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layer": 9}, "--layer is 9; accepted: a layer's number from 0 to 2"),
        ({"token": 900}, "--token is 900; accepted for this text: a number from 0 to"),
        ({"count": 1}, "--tokens is 1; accepted: a whole number from 2 to"),
        ({"top": 0}, "--top is 0; accepted: a whole number from 1 to"),
    ],
)
def test_an_inspection_says_what_is_accepted(service, values, sentence):
    *_, last = ask(service, ("inspect", {"checkpoint": "c.pt", "device": "cpu", "text": TEXT, **values}))
    assert last["event"] == "error"
    assert sentence in last["message"]


def test_one_layer_comes_with_what_each_head_and_channel_looks_at(service):
    *_, report = ask(service, ("inspect", {"checkpoint": "c.pt", "device": "cpu", "text": TEXT, "layer": 0}))
    assert len(report["layers"]) == 1
    assert len(report["map"]["rows"]) == report["model"]["layers"][0]["groups"]
