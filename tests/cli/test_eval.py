"""`mamba-tui eval` as users see it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.checkpoint import save
from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.model import GPT
from core.runs import CheckpointInfo, checkpoint_path
from mamba_tui.cli.eval_tables import memory_sentence, show_report
from mamba_tui.cli.main import main

ROOT = Path(__file__).parents[2]
PATIENCE = 240
TOKENIZER = byte_tokenizer()
CONFIG = build({"n_embd": [8], "n_head": 1, "attention_type": "mamba", "block_size": 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose best checkpoint gives every token the same probability."""
    folder = tmp_path_factory.mktemp("eval")
    run = folder / "checkpoints" / "harbor"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    model = GPT(CONFIG.model, TOKENIZER.vocab_size)
    with torch.no_grad():
        model.head.weight.zero_()
    for step, loss in ((10, 1.5), (20, 2.5)):
        payload = {
            "format": 2, "step": step, "config": flat(CONFIG), "vocab_size": TOKENIZER.vocab_size,
            "tokenizer": TOKENIZER.to_dict(), "model": model.state_dict(),
        }  # fmt: skip
        path = checkpoint_path(run, step)
        save(path, payload, CheckpointInfo(step, path, 0, "", None, loss, None, 0.0, best=False))
    (folder / "a.txt").write_text("café " * 100)
    return folder


def test_figures_come_as_json_for_the_best_checkpoint(folder):
    done = subprocess.run(
        [sys.executable, "-m", "mamba_tui.cli.main", "eval", "--device", "cpu", "--text", "a.txt", "--json"],
        cwd=folder, env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert b"harbor, step 10, the best: validation 1.500 (the newest is step 20" in done.stderr
    report = json.loads(done.stdout)
    assert (report["step"], report["document_count"], report["complete"]) == (10, 1, True)
    assert (report["tokens"], report["characters"], report["bytes"]) == (600, 500, 600)
    nats = math.log(TOKENIZER.vocab_size)
    for way in ("streamed", "windows"):
        assert report[way]["nats_per_token"] == pytest.approx(nats, abs=1e-5)
        assert report[way]["nats_per_character"] == pytest.approx(1.2 * nats, abs=1e-5)
        assert report[way]["bits_per_byte"] == pytest.approx(math.log2(TOKENIZER.vocab_size), abs=1e-5)
        assert report[way]["perplexity"] == pytest.approx(TOKENIZER.vocab_size, rel=1e-4)
    assert [one["name"] for one in report["documents"]] == ["a.txt"]
    assert sum(one["tokens"] for one in report["positions"]) == 600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "none.txt"], '--text is "none.txt", which does not exist; accepted: text files'),
        (["--text", ""], '--text is "", which does not exist'),
        (["--text", "a.txt", "--run", "ghost"], '--run is "ghost", which is not in'),
        (["--text", "a.txt", "--checkpoint", "last"], "--checkpoint is last, which is not a file"),
        (["--text", "a.txt", "--device", "abacus"], 'device is "abacus"; accepted: auto'),
    ],
)
def test_bad_input_is_refused_in_one_sentence(folder, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    assert main(["eval", *arguments]) == 2
    refusal = capsys.readouterr().err
    assert words in refusal
    assert refusal.count("\n") == 1


def loss_of(mean):
    return {
        "nats_per_token": mean, "standard_error": 0.01, "nats_per_character": mean / 4, "bits_per_byte": 2.0,
        "perplexity": math.exp(mean),
    }  # fmt: skip


def report(**changes):
    one = {
        "tokens": 900, "characters": 4000, "bytes": 4000, "streamed": loss_of(3.0), "windows": loss_of(3.1),
        "gain": 0.1, "gain_standard_error": 0.02,
    }  # fmt: skip
    document = {"name": "evil\x1b[2J.txt", "side": "train", **one}
    position = {"from": 0, "to": 64, "tokens": 64, "streamed": 3.0, "windows": 3.0}
    position |= {"gain": 0.0, "gain_standard_error": math.nan}
    whole = {"block_size": 64, "documents": [document], "document_count": 1, "positions": [position]}
    return {**whole, **one, **changes}


def test_the_report_is_safe_text_with_every_figure(capsys):
    show_report(report(), every=False)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "trained on" in text
    for words in ("nats per character\t0.7500", "bits per byte\t2.0000", "windows of 64", "0 to 63"):
        assert words in text
    assert "Carrying the state helps: 0.1000 ± 0.0200 nats per token" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gain": -0.1}, "hurts: 0.1000 ± 0.0200"),
        ({"gain": 0.03}, "makes no measurable difference on this text (+0.0300 ± 0.0200)"),
        ({"tokens": 64}, "Too little text"),
        ({"gain_standard_error": math.nan}, "Too little text"),
    ],
)
def test_what_memory_is_worth_is_said_with_its_doubt(changes, words):
    assert words in memory_sentence(report(**changes))
