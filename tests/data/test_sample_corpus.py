import pytest

from core.config.schema import DataConfig
from core.data.corpus import prepare
from core.data.sample_corpus import DOCUMENTS, FOLDER, has_texts, sample_documents, write_sample
from core.errors import UserError


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
    with pytest.raises(UserError, match="holds text already"):
        write_sample(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_without_texts_has_none(tmp_path):
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    assert not has_texts(tmp_path)
    assert not has_texts(tmp_path / "missing")


def test_where_nothing_can_be_written_it_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        write_sample(tmp_path / "file" / "dataset")
