"""A passage is its own best match; stored features are used only for the same text and model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.config.schema import build
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.errors import UserError
from core.evaluation.texts import find_texts
from core.features import similar
from core.features.shelf_index import STALE_DAYS, ShelfIndex, TextIndex, index_name
from core.features.similar import PassageFinder
from mamba_tui.cli.main import main
from mamba_tui.cli.similar import show
from tests.compression.checkpoints import model_of, write_checkpoint

ROOT = Path(__file__).parents[2]
TOKENIZER = byte_tokenizer()
WORDS = ["the", "sea", "ship", "rain", "garden", "tea", "letter", "war", "peace", "snow", "horse", "whale"]


def story(seed, words=60):
    chosen = np.random.default_rng(seed).choice(WORDS, words)
    return " ".join(chosen) + " naïve.\n"


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(story(number), encoding="utf-8")
    return folder


def texts_of(folder):
    return find_texts([str(folder)], build({}).data, folder, lambda name: None)


def finder(tmp_path, seed=0, **options):
    options = {"per": "20 words", **options}
    return PassageFinder(model_of(TOKENIZER, seed), TOKENIZER, kept=ShelfIndex(tmp_path / "kept"), **options)


def test_a_document_is_nearest_to_itself_and_hits_say_where(tmp_path, shelf):
    text = story(2)
    first = finder(tmp_path, per="document").nearest(text, texts_of(shelf), 3).hits
    assert Path(first[0].file).name == "2.txt"
    assert first[0].nearness == pytest.approx(1, abs=1e-6)
    assert [hit.nearness for hit in first] == sorted((hit.nearness for hit in first), reverse=True)
    answer = finder(tmp_path).nearest("ship rain whale", texts_of(shelf), 100)
    assert len(answer.hits) == answer.passages == 16
    for hit in answer.hits:
        text = Path(hit.file).read_text(encoding="utf-8")
        raw = text.encode()[hit.start : hit.end].decode()
        assert hit.text == raw == text[hit.character : hit.character + len(raw)]


def test_nearness_is_the_cosine_of_standardized_means(tmp_path, shelf):
    one = finder(tmp_path)
    answer = one.nearest("garden tea", texts_of(shelf), 100)
    rows = np.concatenate([index.features for index in one._held.values()]).astype(np.float64)
    wanted = (one._features_of("garden tea") - rows.mean(0)) / rows.std(0)
    rows = (rows - rows.mean(0)) / rows.std(0)
    cosine = rows @ wanted / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted)
    assert [hit.nearness for hit in answer.hits] == pytest.approx(sorted(cosine, reverse=True))


def test_a_shelf_is_read_by_the_model_once_and_a_changed_text_again(tmp_path, shelf):
    assert finder(tmp_path).nearest("sea", texts_of(shelf), 1).indexed == 4
    before = finder(tmp_path).nearest("sea", texts_of(shelf), 5)
    assert before.indexed == 0
    assert [path.name for path in shelf.iterdir() if not path.name.endswith(".txt")] == []
    (shelf / "1.txt").write_text(story(9), encoding="utf-8")
    assert finder(tmp_path).nearest("sea", texts_of(shelf), 1).indexed == 1
    # Another model, layer or kind of passage has an index of its own.
    assert finder(tmp_path, seed=1).nearest("sea", texts_of(shelf), 1).indexed == 4
    assert finder(tmp_path, layer=0).nearest("sea", texts_of(shelf), 1).indexed == 4
    assert finder(tmp_path, per="line").nearest("sea", texts_of(shelf), 1).indexed == 4


def test_a_damaged_or_exchanged_index_counts_as_missing(tmp_path, shelf):
    expected = finder(tmp_path).nearest("sea", texts_of(shelf), 5)
    kept = sorted((tmp_path / "kept").iterdir())
    data = kept[0].read_bytes()
    for bad in (
        data[:-1],
        data[:100],
        b"",
        data[:-9] + bytes((data[-9] ^ 1,)) + data[-8:],
        kept[1].read_bytes(),
    ):
        kept[0].write_bytes(bad)
        answer = finder(tmp_path).nearest("sea", texts_of(shelf), 5)
        assert answer.indexed == 1
        assert answer.hits == expected.hits
    assert kept[0].read_bytes() == data


def test_where_nothing_can_be_kept_every_text_is_read_once_a_search(tmp_path, shelf):
    (tmp_path / "kept").write_text("in the way")
    assert finder(tmp_path).nearest("sea", texts_of(shelf), 5).indexed == 4
    assert (tmp_path / "kept").read_text() == "in the way"


def test_what_nobody_asked_for_in_a_month_goes(tmp_path):
    kept = ShelfIndex(tmp_path)
    empty = np.zeros(1, np.int64)
    index = TextIndex(np.ones((1, 3), np.float32), empty, empty, empty)
    old, used, new = (index_name(word) for word in ("old", "used", "new"))
    for name in (old, used):
        kept.save(name, index)
        long_ago = os.stat(tmp_path / name).st_mtime - (STALE_DAYS + 1) * 86_400
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "somebody's.index").write_text("")
    assert kept.load(used, 3) is not None
    kept.save(new, index)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([used, new, "somebody's.index"])


def test_a_text_that_changes_while_it_is_read_is_not_kept(tmp_path, shelf):
    texts = texts_of(shelf)
    (shelf / "0.txt").write_text(story(0) + "more", encoding="utf-8")
    with pytest.raises(UserError, match=r"0\.txt changed while it was being read"):
        finder(tmp_path).nearest("sea", texts, 1)


def test_memory_holds_a_part_of_a_large_shelf(tmp_path, shelf, monkeypatch):
    expected = finder(tmp_path).nearest("sea", texts_of(shelf), 5).hits
    monkeypatch.setattr(similar, "HELD_BYTES", 1)
    one = finder(tmp_path)
    assert one.nearest("sea", texts_of(shelf), 5).hits == expected
    assert len(one._held) == 1


def test_the_command_prints_passages_and_json(tmp_path, shelf, capsys):
    write_checkpoint(tmp_path / "checkpoints" / "harbor")
    done = subprocess.run(
        [sys.executable, "-m", "mamba_tui.cli.main", "similar", "-", "--text", "texts", "--device", "cpu",
         "-n", "3", "--per", "10 words", "--json"],
        input="a whale", cwd=tmp_path, text=True, capture_output=True, timeout=240,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (len(answer["hits"]), answer["files"], answer["indexed"]) == (3, 4, 4)
    assert set(answer["hits"][0]) == {"nearness", "file", "document", "start", "end", "character", "text"}
    show(answer)
    shown = capsys.readouterr()
    first = answer["hits"][0]
    assert f"1  {first['nearness']:.3f}  {first['file']}, character {first['character']:,}" in shown.out
    assert "4 files, 4 read by the model now" in shown.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["", "--text", "t.txt"], "PASSAGE is empty; accepted: some words"),
        (["x", "--text", "missing"], "which does not exist; accepted: text files and folders"),
        (["x", "--text", "t.txt", "-n", "0"], "-n is 0; accepted: a whole number from 1 to 1,000"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capfd, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("text")
    assert main(["similar", *words]) == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize(
    ("passage", "sentence"), [(" ", "is empty"), ("x" * (1 << 20) + "y", "has 1,048,577")]
)
def test_a_passage_must_be_some_words(tmp_path, shelf, passage, sentence):
    with pytest.raises(UserError, match=sentence):
        finder(tmp_path).nearest(passage, texts_of(shelf), 1)


def test_tokens_are_no_passages(tmp_path):
    with pytest.raises(UserError, match='per is "token"; accepted: line'):
        finder(tmp_path, per="token")
