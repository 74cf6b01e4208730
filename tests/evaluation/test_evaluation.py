"""`core.evaluation` compared with an independent reference: one forward pass over the whole text."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from core.checkpoint import load_model, save
from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import char_tokenizer
from core.errors import UserError
from core.evaluation import text_loss
from core.evaluation.loss_sum import LossSum
from core.evaluation.service import EvaluationService
from core.evaluation.text_loss import Buckets, in_chunks
from core.evaluation.texts import find_texts
from core.model import GPT
from core.runs import CheckpointInfo, checkpoint_path
from core.system.json_lines import Request, Server

TOKENIZER = char_tokenizer("é—")
WINDOW = 8
CONFIG = build(
    {
        "n_embd": [12, 8, 12],
        "n_head": 2,
        "attention_type": ["mamba", "standard", "mamba2"],
        "block_size": WINDOW,
        "document_marks": "cut",
    }
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    model = GPT(CONFIG.model, TOKENIZER.vocab_size)
    for parameter in model.parameters():  # a model that has something to say at every position
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    run = tmp_path / "runs" / "harbor"
    run.mkdir(parents=True)
    payload = {
        "format": 2, "step": 7, "config": flat(CONFIG), "vocab_size": TOKENIZER.vocab_size,
        "tokenizer": TOKENIZER.to_dict(), "model": model.state_dict(),
    }  # fmt: skip
    path = checkpoint_path(run, 7)
    save(path, payload, CheckpointInfo(7, path, 0, "", None, 1.5, None, 0.0, best=False))
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two windows, so that short texts are read in many."""
    monkeypatch.setitem(text_loss.CHUNK_TOKENS, "cpu", 2 * WINDOW)


def answers(checkpoint, *texts, cancel_after=None):
    """The events of a request to a service in this process."""
    events: list[dict[str, object]] = []
    server = Server([], lambda line: events.append(json.loads(line)))
    values = {"op": "evaluate", "id": 1, "checkpoint": str(checkpoint), "device": "cpu"}
    request = Request(server, values | {"texts": [str(text) for text in texts]})
    # It is answered in this thread, without a reader whose end would cancel it.
    if cancel_after is not None:
        seen = 0

        def canceled(one):
            nonlocal seen
            seen += 1
            return seen > cancel_after

        server.is_canceled = canceled
    server._answer_in_turns(request, EvaluationService(load_model).handlers())
    return events


def reference(model, text):
    """Losses of a document's tokens: one forward over all of it, and one forward for each window."""
    ids = [TOKENIZER.eot, *TOKENIZER.encode(text).tolist()]

    def losses(x, y):
        with torch.no_grad():
            logits = model(torch.tensor([x])).logits[0].double()
        logs = logits - logits.exp().sum(1, keepdim=True).log()
        return [-logs[i, token].item() for i, token in enumerate(y)]

    streamed = losses(ids[:-1], ids[1:])
    windows = []
    for start in range(0, len(ids) - 1, WINDOW):
        x = ids[start : min(start + WINDOW, len(ids) - 1)]
        windows += losses(x, ids[start + 1 : start + 1 + len(x)])
    return np.array(streamed), np.array(windows)


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_every_figure_is_that_of_one_forward_of_the_whole_text(model, checkpoint, small_chunks, tmp_path):
    first = "It was a café — and " * 8 + "end"
    second, third = "short", "another one, " * 8
    folder = tmp_path / "texts"
    written(folder, "a.txt", first)
    written(folder, "b.txt", f"{second}<|endoftext|>{third}")
    *events, done = answers(checkpoint, folder)
    assert done["event"] == "done", done
    documents = [event for event in events if event["event"] == "document"]
    names = [str(folder / name) for name in ("a.txt", "b.txt, document 1", "b.txt, document 2")]
    assert [one["name"] for one in documents] == names
    expected = [reference(model, text) for text in (first, second, third)]
    for one, text, (streamed, windows) in zip(documents, (first, second, third), expected, strict=True):
        size = len(text.encode())
        assert (one["tokens"], one["characters"], one["bytes"]) == (len(streamed), len(text), size)
        for way, losses in (("streamed", streamed), ("windows", windows)):
            found = one[way]
            assert found["nats_per_token"] == pytest.approx(losses.mean(), abs=2e-5)
            assert found["nats_per_character"] == pytest.approx(losses.sum() / len(text), abs=2e-5)
            assert found["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / size, abs=2e-5)
            assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
        assert one["gain"] == pytest.approx((windows - streamed).mean(), abs=4e-5)
    everything = np.concatenate([streamed for streamed, _ in expected])
    assert done["documents"] == 3
    assert done["complete"] is True
    assert done["tokens"] == len(everything)
    assert done["streamed"]["nats_per_token"] == pytest.approx(everything.mean(), abs=2e-5)
    # Windows that are not the text's first differ: else this test could not tell the two ways apart.
    assert abs(done["gain"]) > 1e-3
    row = done["positions"][1]
    assert (row["from"], row["to"]) == (64, 128)
    later = np.concatenate([streamed[64:128] for streamed, _ in expected])
    assert row["tokens"] == len(later)
    assert row["streamed"] == pytest.approx(later.mean(), abs=2e-5)


def test_the_size_of_chunks_changes_nothing(checkpoint, monkeypatch, tmp_path):
    text = written(tmp_path / "texts", "a.txt", "one way or another, " * 10)
    found = []
    for size in (WINDOW, 1024):
        monkeypatch.setitem(text_loss.CHUNK_TOKENS, "cpu", size)
        found.append(answers(checkpoint, text)[-1])
    for way in ("streamed", "windows"):
        assert found[0][way]["nats_per_token"] == pytest.approx(found[1][way]["nats_per_token"], abs=1e-5)


def test_the_standard_error_is_that_of_the_stretches_means():
    losses = np.random.default_rng(1).normal(3.0, 1.0, 256 * 400)
    total = LossSum()
    for start in range(0, len(losses), 256 * 7):
        total.add(losses[start : start + 256 * 7])
    means = losses.reshape(-1, 256).mean(1)
    assert total.mean == pytest.approx(losses.mean())
    assert total.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(len(means)))
    single = LossSum()
    single.add(losses[:200])
    assert math.isnan(single.standard_error)


def test_buckets_take_each_token_once_wherever_chunks_are_cut():
    losses = np.arange(1000.0)
    buckets = Buckets()
    for start in range(0, 1000, 37):
        buckets.add(start, losses[start : start + 37], losses[start : start + 37])
    for row in buckets.figures():
        inside = losses[row["from"] : row["to"]]
        assert row["tokens"] == len(inside)
        assert row["streamed"] == pytest.approx(inside.mean())
    assert [row["to"] for row in buckets.figures()] == [64, 128, 256, 512, 1024]


def test_chunks_are_whole_whatever_the_pieces_are():
    pieces = [np.arange(low, high) for low, high in ((0, 3), (3, 40), (40, 41), (41, 50))]
    chunks = list(in_chunks(pieces, 8))
    assert [len(chunk) for chunk in chunks] == [8] * 6 + [2]
    assert np.concatenate(chunks).tolist() == list(range(50))
    assert list(in_chunks([], 8)) == []


def test_texts_know_the_side_that_the_run_gave_them(checkpoint, tmp_path):
    folder = tmp_path / "texts"
    one = written(folder, "a.txt", "something that was read " * 20)
    written(folder, "b.txt", "something else that was not " * 20)
    texts = find_texts([str(folder)], CONFIG.data, tmp_path, lambda name: None).texts
    (tmp_path / "split.json").write_text(json.dumps({"old-name.txt": [texts[0].facts.letters, "train"]}))
    texts = find_texts([str(folder), str(one)], CONFIG.data, tmp_path, lambda name: None).texts
    assert [(text.file.name, text.side) for text in texts] == [
        (str(folder / "a.txt"), "train"), (str(folder / "b.txt"), ""),
    ]  # fmt: skip


def test_what_cannot_be_read_is_said(checkpoint, tmp_path):
    folder = tmp_path / "texts"
    written(folder, "a.txt", "text " * 50)
    written(folder, "empty.txt", "")
    whole = gzip.compress(b"text " * 99)
    (folder / "damaged.txt.gz").write_bytes(whole[: len(whole) // 2])
    done = answers(checkpoint, folder)[-1]
    assert set(done["skipped"]) == {str(folder / "empty.txt"), str(folder / "damaged.txt.gz")}
    assert done["skipped"][str(folder / "empty.txt")] == "is empty"
    assert "gzip" in done["skipped"][str(folder / "damaged.txt.gz")]
    with pytest.raises(UserError, match=r"--text is .*empty\.txt, which is empty"):
        find_texts([str(folder / "empty.txt")], CONFIG.data, tmp_path, lambda name: None)
    (folder / "none").mkdir()
    with pytest.raises(UserError, match=r"a folder without \.txt and \.txt\.gz files"):
        find_texts([str(folder / "none")], CONFIG.data, tmp_path, lambda name: None)


def test_a_cancel_reports_what_was_read(checkpoint, small_chunks, tmp_path):
    text = written(tmp_path / "texts", "a.txt", "one way or another, " * 400)
    done = answers(checkpoint, text, cancel_after=8)[-1]
    assert done["event"] == "done"
    assert done["complete"] is False
    assert 0 < done["tokens"] < 8000
    assert done["characters"] == done["tokens"]
    assert 0 < done["share"] < 1


def test_a_model_that_diverged_is_refused(model, checkpoint, tmp_path):
    text = written(tmp_path / "texts", "a.txt", "text " * 50)
    run = checkpoint.parent
    broken = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken["norm.weight"][:] = torch.nan
    payload = {
        "format": 2, "step": 8, "config": flat(CONFIG), "vocab_size": TOKENIZER.vocab_size,
        "tokenizer": TOKENIZER.to_dict(), "model": broken,
    }  # fmt: skip
    path = checkpoint_path(run, 8)
    save(path, payload, CheckpointInfo(8, path, 0, "", None, 1.5, None, 0.0, best=False))
    last = answers(path, text)[-1]
    assert last["event"] == "error"
    assert "diverged" in last["message"] or "not finite" in last["message"]
