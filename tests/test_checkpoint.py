"""Checkpoints: whole or not at all, verified, unable to run code, and never in training's way."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import core.checkpoint as checkpoint_module
from core.checkpoint import FORMAT, export_weights, load, load_model, load_weights, save, to_host
from core.config.schema import TrainingConfig, build, flat
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.errors import UserError
from core.model import GPT, ModelState
from core.runs import CheckpointInfo, checkpoint_path, find_checkpoints, verify
from core.training.checkpoint_saver import CheckpointSaver
from core.training.optimizer import make_optimizer

CONFIG = build({"n_embd": [8], "n_head": 1, "attention_type": "mamba", "block_size": 4})


def payload_of(step=5, config=CONFIG):
    tokenizer = byte_tokenizer()
    torch.manual_seed(step)
    return {
        "format": FORMAT,
        "step": step,
        "config": flat(config),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.to_dict(),
        "model": GPT(config.model, tokenizer.vocab_size).state_dict(),
    }


def manifest(folder, step, loss=None):
    return CheckpointInfo(
        step=step,
        path=checkpoint_path(folder, step),
        bytes=0,
        sha256="",
        train_loss=None,
        validation_loss=loss,
        bits_per_byte=None,
        time=0.0,
        best=False,
    )


def saved(folder, step=5, loss=None):
    return save(checkpoint_path(folder, step), payload_of(step), manifest(folder, step, loss))


def declare(path, data):
    """Put bytes where a checkpoint is, with a manifest that vouches for them."""
    path.write_bytes(data)
    info = dataclasses.replace(
        manifest(path.parent, 5), bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    from core.runs.checkpoints import write_manifest

    write_manifest(info)


def test_what_is_saved_is_loaded(tmp_path):
    info = saved(tmp_path, loss=2.5)
    assert [found.step for found in find_checkpoints(tmp_path)] == [5]
    assert verify(info) == ""
    assert info.bytes == info.path.stat().st_size
    payload = load(info.path)
    for name, tensor in payload_of()["model"].items():
        assert torch.equal(payload["model"][name], tensor)
    model, tokenizer, _ = load_model(info.path)
    assert not model.training
    assert tokenizer.vocab_size == model.vocab_size == 257
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_tied_head_is_written_once(tmp_path):
    payload = payload_of()
    assert {"head.weight", "embedding.weight"} <= payload["model"].keys()
    info = save(checkpoint_path(tmp_path, 5), to_host(payload), manifest(tmp_path, 5))
    weights = sum(tensor.nbytes for name, tensor in payload["model"].items() if name != "head.weight")
    assert info.bytes < weights + 40_000


def test_the_copy_in_host_memory_shares_nothing_with_training():
    model = {"a": torch.zeros(3), "list": [torch.zeros(2), 1, "x"]}
    model["tied"] = model["a"]
    copy = to_host(model)
    model["a"] += 1
    assert copy["a"].tolist() == [0, 0, 0]
    assert copy["tied"].data_ptr() == copy["a"].data_ptr()
    assert copy["list"][1:] == [1, "x"]


def test_a_checkpoint_truncated_anywhere_is_refused(tmp_path):
    info = saved(tmp_path)
    data = info.path.read_bytes()
    for part in range(16):
        info.path.write_bytes(data[: len(data) * part // 16])
        with pytest.raises(UserError, match=r"damaged: its file has .* bytes instead of"):
            load(info.path)
        # Even a manifest that vouches for the piece makes it no checkpoint.
        declare(info.path, data[: len(data) * part // 16])
        with pytest.raises(UserError, match="not a checkpoint"):
            load(info.path)


def test_one_flipped_byte_is_noticed_anywhere(tmp_path):
    info = saved(tmp_path)
    data = info.path.read_bytes()
    for part in range(16):
        changed = bytearray(data)
        changed[len(data) * part // 16] ^= 0x10
        info.path.write_bytes(changed)
        with pytest.raises(UserError, match="its content has changed"):
            load(info.path)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint_path(tmp_path, 5)
    torch.save(payload_of() | {"model": Bomb()}, path)
    modern = path.read_bytes()
    for data in (modern, pickle.dumps(Bomb()), pickle.dumps({"model": Bomb()}, protocol=0)):
        declare(path, data)
        with pytest.raises(UserError, match="carries program code instead of plain weights"):
            load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"PK\x03\x04" + b"\0" * 100, pickle.dumps([1, 2]), random.Random(1).randbytes(1000)],
    ids=["empty", "text", "zip", "pickle", "noise"],
)
def test_what_is_no_checkpoint_is_refused_in_words(tmp_path, data):
    path = checkpoint_path(tmp_path, 5)
    declare(path, data)
    with pytest.raises(UserError, match="not a checkpoint"):
        load(path)


def test_missing_file_missing_manifest_other_format(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "checkpoint_step_5.pt")
    info = saved(tmp_path)
    info.manifest_path.unlink()
    with pytest.raises(UserError, match="no manifest"):
        load(info.path)
    save(info.path, payload_of() | {"format": 9}, manifest(tmp_path, 5))
    with pytest.raises(UserError, match="of format 9; this version reads formats 1 to 2"):
        load(info.path)
    for payload in ({"format": 1, "step": 5}, {"format": 1, "step": 5, "config": 3, "model": [1]}, [1]):
        save(info.path, payload, manifest(tmp_path, 5))
        with pytest.raises(UserError, match=r"it has no .*config, vocab_size, tokenizer, model"):
            load(info.path)


def test_format_1_is_read_under_the_names_of_today(tmp_path):
    """Its feed-forward layers and its convolution and scan states were called otherwise."""
    old_names = {"mlp": "feed", "mlp_norm": "feed_norm", "conv_state": "tail", "ssm_state": "hidden"}

    def as_before(named):
        return {
            ".".join(old_names.get(word, word) for word in name.split(".")): named[name] for name in named
        }

    tokenizer = byte_tokenizer()
    model = GPT(CONFIG.model, tokenizer.vocab_size)
    tokens = torch.randint(tokenizer.vocab_size, (1, 9))
    state = model(tokens).state
    optimizer = make_optimizer(model, CONFIG.training)
    old = payload_of() | {
        "format": 1,
        "model": as_before(model.state_dict()),
        "model_state": as_before(state.tensors()),
        "optimizer": as_before(optimizer.state_dict()),
    }
    assert "blocks.0.feed.up.weight" in old["model"]
    assert "layers.0.tail" in old["model_state"]
    path = checkpoint_path(tmp_path, 5)
    save(path, old, manifest(tmp_path, 5))
    again, _, payload = load_model(path)
    assert payload["format"] == FORMAT
    carried = ModelState.from_tensors(payload["model_state"])
    assert torch.equal(again(tokens, carried).logits, model(tokens, state).logits)
    make_optimizer(again, CONFIG.training).load_state_dict(payload["optimizer"])


def test_another_model_is_refused_with_what_differs(tmp_path):
    info = saved(tmp_path)
    wider = build({"n_embd": [12], "n_head": 1, "attention_type": "mamba", "block_size": 4})
    with pytest.raises(UserError, match=r"embedding\.weight is 320x8 there and 320x12 here"):
        load_weights(GPT(wider.model, 257), load(info.path), info.path)
    strange = payload_of() | {"config": flat(CONFIG) | {"n_rings": 3}}
    save(info.path, strange, manifest(tmp_path, 5))
    with pytest.raises(UserError, match=r"comes from another version of mamba-tui:\n.*n_rings is 3"):
        load_model(info.path)


@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_disk_that_fills_up_keeps_what_was_there(tmp_path, monkeypatch, room):
    saved(tmp_path, 5)
    real = checkpoint_module._Hashed.write

    def write(self, data):
        if self.bytes + memoryview(data).nbytes > room:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        return real(self, data)

    monkeypatch.setattr(checkpoint_module._Hashed, "write", write)
    for step in (5, 10):
        with pytest.raises(OSError, match="No space left"):
            saved(tmp_path, step)
    assert [(found.step, verify(found)) for found in find_checkpoints(tmp_path)] == [(5, "")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_step_5.json",
        "checkpoint_step_5.pt",
    ]


def test_a_disk_too_small_is_foreseen(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match="bytes are needed") as caught:
        saved(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_saving_happens_beside_training_and_is_told_only_when_it_is_true(tmp_path, monkeypatch):
    saver = CheckpointSaver(tmp_path, TrainingConfig())
    gate, real = threading.Event(), checkpoint_module.write_manifest

    def slow(info):
        assert gate.wait(240)
        real(info)

    monkeypatch.setattr(checkpoint_module, "write_manifest", slow)
    payload = payload_of()
    before = payload["model"]["embedding.weight"].clone()
    saver.submit(payload, {"validation_loss": 1.5})
    payload["model"]["embedding.weight"] += 1  # training goes on
    assert saver.results() == []
    assert find_checkpoints(tmp_path) == []
    assert saver.has(5, evaluated=True)
    gate.set()
    saver.wait()
    (result,) = saver.results()
    assert (result.step, result.problem, result.info.best) == (5, "", True)
    assert torch.equal(load(result.info.path)["model"]["embedding.weight"], before)


def test_a_failed_save_is_told_and_can_be_tried_again(tmp_path, monkeypatch):
    saver = CheckpointSaver(tmp_path, TrainingConfig())
    monkeypatch.setattr(
        checkpoint_module.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "bad disk"))
    )
    saver.submit(payload_of(), {})
    saver.wait()
    assert [(result.info, result.problem) for result in saver.results()] == [(None, "bad disk")]
    assert not saver.has(5, evaluated=False)
    monkeypatch.undo()
    saver.submit(payload_of(), {})
    saver.wait()
    assert saver.results()[0].info.step == 5


def test_exported_weights_load_with_plain_safetensors(tmp_path):
    info = saved(tmp_path)
    out = tmp_path / "weights.safetensors"
    export_weights(info.path, out)
    payload = load(info.path)
    weights = load_file(out)
    assert weights.keys() == payload["model"].keys() - {"head.weight"}
    assert all(torch.equal(weights[name], payload["model"][name]) for name in weights)
    with safe_open(out, "pt") as file:
        assert file.metadata()["step"] == "5"
        assert build(json.loads(file.metadata()["config"])) == build(payload["config"])


def test_an_export_goes_where_it_was_asked_for_and_through_no_link(tmp_path):
    info = saved(tmp_path)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "weights.safetensors").symlink_to(tmp_path / "mine")
    export_weights(info.path, tmp_path / "weights.safetensors")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(OSError, match="is a device, not a file"):
        export_weights(info.path, Path("/dev/null"))


def test_exported_weights_are_safetensors(tmp_path):
    info = saved(tmp_path)
    size = export_weights(info.path, tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    assert len(data) == size
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__")["step"] == "5"
    body, expected = data[8 + length :], load(info.path)["model"]
    assert header.keys() == expected.keys() - {"head.weight"}
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0
    assert ends[-1][1] == len(body)
    assert all(early[1] == late[0] for early, late in itertools.pairwise(ends))
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        tensor = torch.frombuffer(bytearray(body[low:high]), dtype=torch.float32).reshape(entry["shape"])
        assert torch.equal(tensor, expected[name])


def refused(folder, payload, words):
    out = io.BytesIO()
    torch.save(payload, out)
    declare(checkpoint_path(folder, 5), out.getvalue())
    with pytest.raises(UserError, match=words) as caught:
        load_model(checkpoint_path(folder, 5))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (7, "is of type int, not a tensor"),
        ([1.0], "is of type list, not a tensor"),
        (torch.zeros(320, 8).to_sparse(), "something other than plain tensors"),
        (torch.zeros(320, 8, dtype=torch.complex64), "something other than plain tensors|is of complex64"),
        (torch.zeros(320, 8, dtype=torch.int64), "is of int64; accepted: float32"),
        (torch.empty(320, 8, device="meta"), "something other than plain tensors|on the device meta"),
        (torch.quantize_per_tensor(torch.zeros(320, 8), 1.0, 0, torch.quint8), "something other than plain"),
    ],
    ids=["number", "list", "sparse", "complex", "whole", "meta", "quantized"],
)
def test_weights_that_are_not_plain_tensors_are_refused(tmp_path, weight, words):
    payload = payload_of()
    payload["model"]["embedding.weight"] = weight
    refused(tmp_path, payload, words)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def shared(depth):
    """Small, but of 2 ** depth values to whoever walks through it without looking."""
    value = [0]
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 10**5000},
        {"config": {"n_embd": 10**5000}},
        {"losses": nested(200)},
        {"losses": shared(70)},
        {"vocab_size": 10**12},
        {"vocab_size": 0},
        {"vocab_size": -1},
        {"config": {"n_layer": 512, "n_embd": 65536, "attention_type": "mamba2", "d_state": 256}},
        {"tokenizer": {"format": 1, "kind": "x", "pattern": "x", "tokens": []}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_values_beyond_all_measure_are_a_sentence_and_take_no_memory(tmp_path, changes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, payload_of() | changes, ".")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def rewritten(path, change):
    """The archive at `path` with its entries changed, under a manifest that vouches for it."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", change.pop("method", zipfile.ZIP_STORED)) as archive:
        for name, data in (entries | change).items():
            archive.writestr(name, data)
    declare(path, out.getvalue())


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused_before_it_is_read(tmp_path, monkeypatch):
    info = saved(tmp_path)
    rewritten(info.path, {"archive/bomb": bytes(50_000_000), "method": zipfile.ZIP_DEFLATED})
    assert info.path.stat().st_size < 1_000_000
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="its weights are compressed"):
        load(info.path)


def test_an_archive_whose_directory_lies_is_refused(tmp_path, monkeypatch):
    info = saved(tmp_path)
    data = bytearray(info.path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1 << 31).to_bytes(4, "little")
    declare(info.path, bytes(data))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="claims to hold more than its"):
        load(info.path)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_checkpoint_is_a_regular_file(tmp_path, kind):
    info = saved(tmp_path)
    info.path.unlink()
    if kind == "pipe":
        os.mkfifo(info.path)
    else:
        info.path.mkdir()
    with pytest.raises(UserError):
        load_model(info.path)
