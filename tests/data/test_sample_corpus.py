from pathlib import Path

import pytest

from core.config.schema import DataConfig, build
from core.data.corpus import prepare
from core.data.sample_corpus import (
    DOCUMENTS,
    FOLDER,
    has_texts,
    is_untouched_default,
    sample_documents,
    write_sample,
)
from core.errors import UserError
from core.runs import prepare_run
from mamba_tui.cli.main import main


def test_the_sample_is_several_documents_of_real_text():
    documents = sample_documents()
    assert len(documents) == DOCUMENTS
    assert sum(map(len, documents.values())) > 300_000
    assert max(map(len, documents.values())) < 0.25 * sum(map(len, documents.values()))
    assert sample_documents() == documents


def test_writing_says_plainly_what_it_is_and_where(tmp_path):
    sentence = write_sample(tmp_path / "new" / "dataset")
    assert "Python language reference" in sentence
    assert str(tmp_path / "new" / "dataset") in sentence
    assert f"{DOCUMENTS} files" in sentence
    assert len(list((tmp_path / "new" / "dataset" / FOLDER).glob("*.txt"))) == DOCUMENTS


def test_the_sample_is_split_by_documents(tmp_path):
    write_sample(tmp_path)
    corpus = prepare(DataConfig(dataset_dir=str(tmp_path)), 1337)
    assert {file.split for file in corpus.report} == {"train", "validation"}
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert 0.03 < share < 0.2


@pytest.mark.parametrize("name", ["mine.txt", "deep/down/mine.TXT.GZ", "empty.txt"])
def test_nothing_is_written_beside_a_text_of_the_users_own(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert has_texts(tmp_path)
    with pytest.raises(UserError, match="contains text already"):
        write_sample(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_without_texts_has_none(tmp_path):
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    assert not has_texts(tmp_path)
    assert not has_texts(tmp_path / "missing")


def test_texts_behind_a_link_are_texts(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("x")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dataset" / "circle").symlink_to(tmp_path / "dataset")
    assert has_texts(tmp_path / "dataset")


def test_only_the_default_folder_as_nobody_has_touched_it_is_untouched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = Path(DataConfig().dataset_dir)
    assert is_untouched_default(default)
    assert not is_untouched_default("boooks")
    default.mkdir()
    (default / ".gitkeep").write_text("")
    assert is_untouched_default(default)
    (default / "notes.md").write_text("mine")
    assert not is_untouched_default(default)
    (default / "notes.md").rename(default / ".mamba-tui-cache")  # there was text here once
    assert not is_untouched_default(default)


def test_the_folder_of_the_sample_is_not_a_link(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / FOLDER).symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="cannot be written"):
        write_sample(tmp_path / "dataset")
    assert list((tmp_path / "home").iterdir()) == []


def test_where_nothing_can_be_written_it_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_sample(tmp_path / "file" / "dataset")


SMALL = ["--preset", "book", "--device", "cpu", "--set", "tokenizer=byte"]


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "--max-iters", "20"], []])
def test_a_resumed_run_is_never_given_another_text(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    config = build(
        {"n_embd": [8], "n_head": 1, "attention_type": "mamba", "tokenizer": "byte", "device": "cpu"}
    )
    run = prepare_run(Path("checkpoints"), "r", config)
    run.events_path.write_text("")
    assert main(["train", "--run", "r", *arguments]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "dataset") in error
    assert "does not exist" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("name", ["./boooks", "dataset/boooks"])
def test_a_mistyped_folder_is_never_filled_with_the_sample(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--set", f"dataset_dir={name}"]) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error
    assert error.count("\n") == 1
    assert not (tmp_path / name).exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_default_folder_that_was_used_is_never_filled_with_the_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "book.epub").write_text("mine")
    assert main(["train", *SMALL]) == 2
    assert "dataset_dir is dataset, which contains no text" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["book.epub"]
