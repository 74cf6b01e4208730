"""Features of passages are the means of one whole forward, however the text is cut."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.tokenizer.tokenizer import WORD_PATTERN, Tokenizer
from core.errors import UserError
from core.features.embed import DocumentEncoder, embed
from core.features.feature_file import write_features
from core.features.passages import Passages
from mamba_tui.cli.main import main
from tests.compression.checkpoints import model_of, write_checkpoint

ROOT = Path(__file__).parents[2]
TOKENIZER = Tokenizer(
    "auto", WORD_PATTERN, [*(bytes((value,)) for value in range(256)), b" a", b"bc", b" bc", b"\n\n"]
)
MODEL = model_of(TOKENIZER).double()
TEXTS = st.lists(st.sampled_from([" a", "bc", " ", "\n", "\n\n", "é", "x y\n", "\t"]), max_size=40).map(
    "".join
)


def passages_by_hand(text, per):
    """Where passages begin, the slow way, in characters of ASCII text."""
    if per == "line":
        return [m.end() for m in re.finditer("\n", text)]
    words = [m.start() for m in re.finditer(r"\S+", text)]
    if per == "paragraph":
        return [at for at in words[1:] if re.search(r"\n\s*\n\s*$", text[:at])]
    count = int(per.split()[0])
    return words[count::count]


@given(
    TEXTS.map(lambda text: text.replace("é", "e")),
    st.sampled_from(["line", "paragraph", "3 words", "1 word"]),
    st.data(),
)
def test_passages_begin_where_they_do_however_the_text_comes(text, per, data):
    raw = np.frombuffer(text.encode(), np.uint8)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    passages, at, begins = Passages(per), 0, []
    for part in np.split(raw, cuts):
        begins += [at + int(begin) for begin in passages.begins(part)]
        at += len(part)
    assert begins == passages_by_hand(text, per)


@settings(max_examples=40)
@given(
    TEXTS,
    st.sampled_from(["token", "line", "paragraph", "2 words", "document"]),
    st.integers(0, 2),
    st.data(),
)
def test_rows_are_means_of_one_whole_forward(text, per, layer, data):
    tokens = TOKENIZER.encode(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    chunks = [part for part in np.split(tokens, cuts) if len(part)]
    rows = list(DocumentEncoder(MODEL, TOKENIZER, layer, per).rows("text", iter(chunks)))
    if not len(tokens):
        assert rows == []
        return
    opened = torch.tensor([[TOKENIZER.eot, *tokens.tolist()]])
    with torch.inference_mode():
        whole = MODEL.encode_layer(layer, opened)[0][0, 1:].numpy()
    ends = np.cumsum(TOKENIZER.token_lengths[tokens])
    starts, stops = (np.concatenate([getattr(part, key) for part in rows]) for key in ("start", "end"))
    features = np.concatenate([part.features for part in rows])
    counts = np.concatenate([part.tokens for part in rows])
    assert counts.sum() == len(tokens)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        inside = (ends > start) & (ends <= stop)
        assert inside.sum() == counts[row]
        np.testing.assert_allclose(features[row], whole[inside].mean(0), rtol=1e-9, atol=1e-11)


def test_the_waist_is_what_encode_gives():
    tokens = torch.randint(0, 256, (1, 30))
    with torch.inference_mode():
        expected = MODEL.encode(tokens)
        _, state = MODEL.encode_layer(MODEL.waist, tokens[:, :11])
        later, _ = MODEL.encode_layer(MODEL.waist, tokens[:, 11:], state)
    torch.testing.assert_close(later, expected[:, 11:], rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    write_checkpoint(folder / "checkpoints" / "harbor")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("One line here.\nAnother.\n\nA second paragraph.\n")
    (folder / "texts" / "b.txt").write_text("Something else.\n")
    return folder


def test_a_file_of_features(folder):
    done = subprocess.run(
        [sys.executable, "-m", "mamba_tui.cli.main", "embed", "--text", "texts", "--out", "f.npz", "--device",
         "cpu", "--dtype", "float16"],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "f.npz: 3 rows of 8 numbers" in done.stdout
    with np.load(folder / "f.npz") as file:
        assert file["features"].dtype == np.float16
        assert file["features"].shape == (3, 8)
        assert [Path(name).name for name in file["documents"][file["document"]]] == [
            "a.txt",
            "a.txt",
            "b.txt",
        ]
        text = (folder / "texts" / "a.txt").read_bytes()
        assert text[file["start"][1] : file["end"][1]] == b"A second paragraph.\n"


def test_the_matrix_alone(folder, tmp_path):
    checkpoint = next((folder / "checkpoints" / "harbor").glob("*.pt"))
    width, rows = embed([str(folder / "texts")], checkpoint, device="cpu", layer=0, per="token")
    assert width == 16
    count = write_features(tmp_path / "f.npy", rows, width)
    assert np.load(tmp_path / "f.npy").shape == (count, 16)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_parquet_file_has_a_row_a_passage(folder, tmp_path, dtype):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    checkpoint = next((folder / "checkpoints" / "harbor").glob("*.pt"))
    texts = [str(folder / "texts")]
    for suffix in ("parquet", "npz"):
        width, rows = embed(texts, checkpoint, device="cpu", per="line")
        write_features(tmp_path / f"f.{suffix}", rows, width, dtype)
    table = parquet.read_table(tmp_path / "f.parquet")
    with np.load(tmp_path / "f.npz") as file:
        assert table.column("document").to_pylist() == file["documents"][file["document"]].tolist()
        for key in ("start", "end", "tokens"):
            assert table.column(key).to_pylist() == file[key].tolist()
        features = np.array(table.column("features").to_pylist(), dtype)
        np.testing.assert_array_equal(features, file["features"])
    assert (
        str(table.schema.field("features").type.value_type)
        == {"float32": "float", "float16": "halffloat"}[dtype]
    )


def test_a_parquet_file_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"f\.parquet, which needs pyarrow .*accepted without: \.npz"):
        write_features(tmp_path / "f.parquet", iter(()), 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"per": "page"}, '--per is "page"; accepted: token, line'),
        ({"layer": "9"}, "--layer is 9; accepted: waist, or a layer's number from 0 to 2"),
    ],
)
def test_bad_options_are_one_sentence(folder, options, sentence):
    checkpoint = next((folder / "checkpoints" / "harbor").glob("*.pt"))
    with pytest.raises(UserError, match=sentence):
        embed([str(folder / "texts")], checkpoint, device="cpu", **options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text", "missing", "--out", "f.npz"], '--text is "missing", which does not exist'),
        (["--text", "old", "--out", "old"], "--out is old, which exists"),
        (["--text", "old", "--out", "no/f.npz"], "whose folder does not exist"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capfd, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("old")
    assert main(["embed", *words]) == 2
    assert sentence in capfd.readouterr().err
    assert (tmp_path / "old").read_text() == "old"


def test_a_name_that_says_no_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--out is .*accepted: a name that ends in \.npz, \.npy, \.parquet"):
        write_features(tmp_path / "features.csv", iter(()), 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cuda
def test_rows_on_a_gpu_are_those_of_the_cpu():
    tokens = TOKENIZER.encode("one two three four five six seven eight nine ten " * 40)
    chunks = [tokens[:100], tokens[100:101], tokens[101:]]
    rows = {
        device: list(DocumentEncoder(MODEL.to(device), TOKENIZER, 1, "7 words").rows("text", iter(chunks)))
        for device in ("cuda", "cpu")
    }
    cuda, cpu = (np.concatenate([part.features for part in rows[device]]) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(cuda, cpu, rtol=1e-6, atol=1e-8)
