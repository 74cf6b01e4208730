import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.schema import DataConfig
from core.data.corpus import cache_folder, encode, pipeline, prepare
from core.data.corpus.cleaning import clean
from core.data.corpus.token_store import TokenStore
from core.data.corpus.token_stream import TokenStream
from core.data.loader import SequentialLoader
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.errors import UserError

WORDS = ["the", "of", "and", "a", "to", "in", "he", "was", "that", "it", "his", "her", "with", "she", "not"]
BOOKS = Path(__file__).parents[3] / "shared" / "data" / "books"


def story(seed, words=300):
    chance = random.Random(seed)
    return "".join(chance.choice(WORDS) + chance.choice("    \n") for _ in range(words)) + f"end {seed}\n"


def shelf(folder, count=6, words=300):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"book {number}.txt").write_text(story(number, words))
    return folder


def config(folder, **changes):
    return DataConfig(**({"dataset_dir": str(folder), "tokenizer": "byte"} | changes))


def text_of(corpus, stream):
    """What a stream says, split into its documents."""
    ids = stream.read(0, len(stream))
    parts = np.split(ids, np.flatnonzero(ids == corpus.tokenizer.eot))
    return [corpus.tokenizer.decode(part[1:].tolist()) for part in parts[1:]]


def splits(corpus):
    return {file.name: file.split for file in corpus.report}


@pytest.mark.parametrize("kind", ["byte", "char", "auto"])
def test_streams_are_the_files_each_behind_an_opening(tmp_path, kind):
    corpus = prepare(config(shelf(tmp_path), tokenizer=kind), 1)
    sides = splits(corpus)
    for stream, side in ((corpus.train, "train"), (corpus.validation, "validation")):
        names = sorted(name for name in sides if sides[name] == side)
        assert text_of(corpus, stream) == [(tmp_path / name).read_text() for name in names]
        openings = np.flatnonzero(stream.read(0, len(stream)) == corpus.tokenizer.eot)
        assert stream.documents.tolist() == openings.tolist()
        assert stream.text_bytes == sum(len((tmp_path / name).read_bytes()) for name in names)
    assert corpus.bytes_per_token == corpus.validation.text_bytes / len(corpus.validation)


def test_few_files_are_split_at_a_line_near_their_ends(tmp_path):
    shelf(tmp_path, count=2)
    corpus = prepare(config(tmp_path), 1)
    heads, tails = text_of(corpus, corpus.train), text_of(corpus, corpus.validation)
    for number in range(2):
        whole = (tmp_path / f"book {number}.txt").read_text()
        assert heads[number] + tails[number] == whole
        assert heads[number].endswith("\n")
        assert 0.04 < len(tails[number]) / len(whole) <= 0.101
    assert set(splits(corpus).values()) == {"tail"}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(8, 400), min_size=1, max_size=9),
    seed=st.integers(0, 2**63 - 1),
    fraction=st.sampled_from([0.05, 0.1, 0.3, 0.5]),
    copies=st.integers(0, 2),
    tokenizer=st.sampled_from(["byte", "auto", "char"]),
)
def test_no_token_of_validation_is_ever_trained_on(
    tmp_path_factory, sizes, seed, fraction, copies, tokenizer
):
    """Each word is unique to its place, so a word in a training batch tells where it came from."""
    folder = tmp_path_factory.mktemp("shelf")
    stories = [
        " ".join(f"w{number}x{index}" for index in range(size)) + "\n" for number, size in enumerate(sizes)
    ]
    for number, text in enumerate(stories + stories[:copies]):
        (folder / f"{number}.txt").write_text(text)
    corpus = prepare(config(folder, tokenizer=tokenizer, validation_fraction=fraction), seed)
    held = {word for text in text_of(corpus, corpus.validation) for word in text.split()}
    loader = SequentialLoader(corpus.train, corpus.tokenizer.eot, 4, 8, 2, seed)
    trained = set()
    while loader.epoch < 2:
        for start in loader.next_positions()[0].tolist():
            trained.update(range(start, start + 9))
    ids = corpus.train.read(0, len(corpus.train))
    text = corpus.tokenizer.decode(ids[sorted(trained)].tolist())
    whole = {word for story in stories for word in story.split()}
    # A word cut in two where a tail begins belongs to neither side in whole.
    assert held
    assert not held & whole & set(text.replace("<|endoftext|>", " ").split())


def test_learning_a_vocabulary_reads_no_validation_text(tmp_path):
    shelf(tmp_path)
    sides = splits(prepare(config(tmp_path), 1))
    (held,) = [name for name in sides if sides[name] == "validation"]
    (tmp_path / held).write_text("Zyzzyvaquixotry " * 200)
    assert list(cache_folder(str(tmp_path)).glob("tok*"))
    corpus = prepare(config(tmp_path, tokenizer="auto", vocab_size=600), 1)
    assert splits(corpus)[held] == "validation"
    assert not any(b"yzzy" in token for token in corpus.tokenizer.tokens)
    assert any(b"that" in token for token in corpus.tokenizer.tokens)


def test_the_validation_tail_teaches_the_vocabulary_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("plain words here\n" * 500 + "Zyzzyva\n" * 60)
    corpus = prepare(config(tmp_path, tokenizer="auto"), 1)
    assert not any(b"zz" in token for token in corpus.tokenizer.tokens)
    assert "Zyzzyva" in text_of(corpus, corpus.validation)[0]


def test_when_the_validation_text_is_removed_other_text_validates_and_that_is_said(tmp_path):
    shelf(tmp_path)
    first = prepare(config(tmp_path, tokenizer="auto"), 1)
    assert first.notices == []
    (held,) = [name for name, side in splits(first).items() if side == "validation"]
    (tmp_path / held).unlink()
    second = prepare(config(tmp_path, tokenizer="auto"), 1)
    (now_held,) = [name for name, side in splits(second).items() if side == "validation"]
    assert second.notices == [
        f"{now_held} is validation text now; earlier runs trained on it. The text used before is gone"
    ]
    assert second.tokenizer.hash != first.tokenizer.hash
    assert prepare(config(tmp_path, tokenizer="auto"), 1).notices == []


# --- the cache ------------------------------------------------------------------------------------


def test_only_a_new_book_is_encoded(tmp_path):
    shelf(tmp_path, count=8)
    first = prepare(config(tmp_path, tokenizer="auto"), 1)
    assert first.encoded_files == 8
    (tmp_path / "another.txt").write_text(story(99))
    second = prepare(config(tmp_path, tokenizer="auto"), 1)
    assert second.encoded_files == 1
    assert second.tokenizer.hash == first.tokenizer.hash
    assert prepare(config(tmp_path, tokenizer="auto"), 1).encoded_files == 0


def test_an_unchanged_shelf_is_not_read_again(tmp_path, monkeypatch):
    shelf(tmp_path)
    # A file written a moment ago would be read once more.
    monkeypatch.setattr("core.data.corpus.cache._TICK", -(10**12))
    monkeypatch.setattr("core.data.corpus.cache._LONG_TICK", -(10**12))
    first = prepare(config(tmp_path), 1)
    monkeypatch.setattr("core.data.corpus.pipeline.survey", lambda *_: pytest.fail("read again"))
    second = prepare(config(tmp_path), 1)
    assert len(second.train) == len(first.train)


def test_an_edit_that_keeps_length_and_time_is_noticed(tmp_path):
    shelf(tmp_path)
    path = tmp_path / "book 3.txt"
    prepare(config(tmp_path), 1)
    before = path.stat()
    changed = path.read_text().replace("the", "thy", 1)
    with open(path, "r+") as file:
        file.write(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    corpus = prepare(config(tmp_path), 1)
    assert corpus.encoded_files == 1
    assert changed in text_of(corpus, corpus.train) + text_of(corpus, corpus.validation)


def test_a_file_written_as_it_was_read_is_read_again(tmp_path, monkeypatch):
    """The clock of a file system ticks slowly: a second write in one tick leaves no trace in it."""
    shelf(tmp_path)
    monkeypatch.setattr("core.data.corpus.cache._TICK", 10**15)
    prepare(config(tmp_path), 1)
    seen = []
    original = pipeline.survey
    monkeypatch.setattr(
        pipeline, "survey", lambda found, *rest: seen.append(found.name) or original(found, *rest)
    )
    prepare(config(tmp_path), 1)
    assert len(seen) == 6


def test_runs_with_other_seeds_share_the_ids(tmp_path):
    shelf(tmp_path)
    assert prepare(config(tmp_path), 1).encoded_files == 6
    assert prepare(config(tmp_path), 2).encoded_files == 0


def test_the_order_of_arrival_does_not_show(tmp_path):
    one, two = tmp_path / "one", shelf(tmp_path / "two")
    shelf(one, count=5)
    prepare(config(one), 1)
    first_split = json.loads((cache_folder(str(one)) / "split.json").read_text())
    (one / "book 5.txt").write_text(story(5))
    (cache_folder(str(two)) / "split.json").write_text(json.dumps(first_split))
    a, b = prepare(config(one), 1), prepare(config(two), 1)
    np.testing.assert_array_equal(a.train.read(0, len(a.train)), b.train.read(0, len(b.train)))


def test_a_book_that_grows_up_stays_on_its_side(tmp_path):
    shelf(tmp_path)
    before = splits(prepare(config(tmp_path), 1))
    for number in range(6, 30):
        (tmp_path / f"aa {number}.txt").write_text(story(number))
    after = splits(prepare(config(tmp_path), 1))
    assert before.items() <= after.items()


def test_removed_and_edited_books_leave_no_waste_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("core.data.corpus.token_store._WASTE_KEPT", 0)
    shelf(tmp_path)
    first = prepare(config(tmp_path), 1)
    held = first.train.read(0, len(first.train)).copy()
    for edition in (100, 200):
        for number in range(5):
            (tmp_path / f"book {number}.txt").write_text(story(edition + number))
        second = prepare(config(tmp_path), 1)
    (path,) = second.cache.glob("tokens-*/tokens-*.bin")
    assert path.stat().st_size == 2 * (len(second.train) + len(second.validation))
    # Whoever has the old file open still reads the old text.
    np.testing.assert_array_equal(first.train.read(0, len(first.train)), held)
    assert sorted(text_of(second, second.train) + text_of(second, second.validation)) == sorted(
        path.read_text() for path in tmp_path.glob("*.txt")
    )


def test_ids_of_forgotten_tokenizers_are_dropped(tmp_path):
    shelf(tmp_path)
    cache = prepare(config(tmp_path, tokenizer="auto"), 1).cache
    (old,) = cache.glob("tokens-*")
    os.utime(old / "entries.jsonl", (1, 1))
    prepare(config(tmp_path), 1)
    assert not old.exists()
    assert len(list(cache.glob("tokens-*"))) == 1


def test_a_given_tokenizer_is_used_as_it_is(tmp_path):
    shelf(tmp_path)
    corpus = prepare(config(tmp_path, tokenizer="auto"), 1, tokenizer=byte_tokenizer())
    assert corpus.tokenizer.kind == "byte"
    assert text_of(corpus, corpus.validation)


def test_a_tokenizer_file_is_used_by_its_path(tmp_path):
    shelf(tmp_path / "texts")
    first = prepare(config(tmp_path / "texts", tokenizer="auto"), 1)
    first.tokenizer.save(tmp_path / "mine.json")
    second = prepare(config(tmp_path / "texts", tokenizer=str(tmp_path / "mine.json")), 1)
    assert second.tokenizer.hash == first.tokenizer.hash
    assert second.encoded_files == 0


def state(folder):
    return {
        path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")
    }


@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_the_dataset_folder_is_never_written(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shelf(tmp_path / "texts")
    folder.chmod(mode)
    before = state(folder), folder.stat().st_mtime_ns
    try:
        corpus = prepare(config(folder, tokenizer="auto"), 1)
        assert corpus.cache.parent == tmp_path / "cache" / "mamba-tui" / "datasets"
        assert prepare(config(folder, tokenizer="auto"), 1).encoded_files == 0
        clean(str(folder), forget_split=True)
    finally:
        folder.chmod(0o755)
    assert (state(folder), folder.stat().st_mtime_ns) == before
    for path in [tmp_path / "cache" / "mamba-tui", *(tmp_path / "cache" / "mamba-tui").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_lies_beside_the_texts_is_ignored(tmp_path):
    """A cache that came with the texts, as earlier versions made, is ignored."""
    folder = shelf(tmp_path / "texts")
    sides = splits(prepare(config(folder), 1))
    planted = folder / ".mamba-tui-cache"
    planted.mkdir()
    (planted / "split.json").write_text(json.dumps({"1:0.1": {name: ["x", "validation"] for name in sides}}))
    before = state(folder)
    assert splits(prepare(config(folder), 1)) == sides
    clean(str(folder), forget_split=True)
    assert splits(prepare(config(folder), 1)) == sides
    assert state(folder) == before


def test_a_folder_that_moves_keeps_its_record_and_its_ids(tmp_path):
    shelf(tmp_path / "one", count=40)
    first = prepare(config(tmp_path / "one"), 1)
    for number in range(20):
        (tmp_path / "one" / f"aa {number}.txt").write_text(story(100 + number))
    sides = splits(prepare(config(tmp_path / "one"), 1))
    (tmp_path / "one").rename(tmp_path / "two")
    second = prepare(config(tmp_path / "two"), 1)
    assert splits(second) == sides
    assert second.encoded_files == 0
    assert not first.cache.exists()


def test_ids_of_a_dataset_long_gone_are_dropped_and_its_record_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gone = prepare(config(shelf(tmp_path / "gone")), 1).cache
    (tmp_path / "gone").rename(tmp_path / "cache" / "elsewhere")
    os.utime(gone / "folder.json", (1, 1))
    prepare(config(shelf(tmp_path / "new")), 1)
    assert sorted(path.name for path in gone.iterdir()) == ["folder.json", "lock", "split.json"]


def test_a_cache_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "cache" / "mamba-tui").mkdir()
    (tmp_path / "cache" / "mamba-tui" / "datasets").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match=r"no place for the token cache .*\(is a link.* set XDG_CACHE_HOME"):
        prepare(config(shelf(tmp_path / "texts")), 1)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("value", [7, 60_000])
def test_ids_that_were_changed_are_prepared_again(tmp_path, value):
    """With ids in or out of the vocabulary: a model never learns from something that only looks like the
    text.
    """
    first = prepare(config(shelf(tmp_path)), 1)
    expected = first.train.read(0, len(first.train)).copy()
    (tokens,) = first.cache.glob("tokens-*/tokens-*.bin")
    info = tokens.stat()
    with open(tokens, "r+b") as file:
        file.seek(100)
        file.write(value.to_bytes(2, "little"))
    os.utime(tokens, ns=(info.st_atime_ns, info.st_mtime_ns))
    again = prepare(config(tmp_path), 1)
    assert again.encoded_files == 1
    assert any("token cache was changed" in notice for notice in again.notices)
    np.testing.assert_array_equal(again.train.read(0, len(again.train)), expected)
    last = prepare(config(tmp_path), 1)
    assert (last.encoded_files, last.notices) == (0, [])


def test_ids_that_are_known_to_be_right_are_not_read_again(tmp_path, monkeypatch):
    prepare(config(shelf(tmp_path)), 1)
    monkeypatch.setattr(TokenStore, "_is_right", lambda *_: pytest.fail("read again"))
    assert prepare(config(tmp_path), 1).encoded_files == 0


@pytest.mark.parametrize(
    "line",
    [
        '["k", -1, 2, [0], null, 1, 1, "x"]',
        '["k", 0, 2, [5], null, 1, 1, "x"]',
        '["k", 0, 2, [0], 9, 1, 1, "x"]',
        '["k", 0, 2, "00", null, 1, 1, "x"]',
        '["k", 0, true, [0], null, 1, 1, "x"]',
        '["k", 0, ' + "9" * 401 + ', [0], null, 1, 1, "x"]',
        '["k", 0, ' + "9" * 5000 + ', [0], null, 1, 1, "x"]',
        "[" * 100_000,
    ],
)
def test_a_journal_that_makes_no_sense_is_begun_again(tmp_path, line):
    first = prepare(config(shelf(tmp_path)), 1)
    (journal,) = first.cache.glob("tokens-*/entries.jsonl")
    with open(journal, "a") as file:
        file.write(line + "\n")
    again = prepare(config(tmp_path), 1)
    assert again.encoded_files == 6
    assert any("token cache was damaged" in notice for notice in again.notices)


def test_a_single_file_is_a_dataset_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shelf(tmp_path / "texts")
    corpus = prepare(config(tmp_path / "texts" / "book 0.txt"), 1)
    assert splits(corpus) == {"book 0.txt": "tail"}


# --- what cannot be used ----------------------------------------------------------------------------


def test_odd_files_are_reported_and_the_rest_goes_on(tmp_path):
    shelf(tmp_path)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "x.txt").mkdir()
    (tmp_path / "utf16.txt").write_text(story(50), encoding="utf-16")
    (tmp_path / "latin.txt").write_text("Füße über Öl\n" * 50, encoding="latin-1")
    (tmp_path / "twin.txt").write_text(story(0))
    corpus = prepare(config(tmp_path), 1)
    report = {file.name: file for file in corpus.report}
    assert report["empty.txt"].notes == ["is empty"]
    assert report["image.txt"].notes == ["is a PNG image, not text"]
    assert report["pipe.txt"].notes == ["is a named pipe, not a text file"]
    assert report["x.txt"].notes == ["is a folder; the texts in it are read"]
    assert report["utf16.txt"].encoding == "utf-16"
    assert "guessed" in report["latin.txt"].notes[0]
    assert report["twin.txt"].duplicate_of == "book 0.txt"
    assert report["twin.txt"].split == report["book 0.txt"].split
    assert len(corpus.read) == 9
    assert "not read: 4" in corpus.summary()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no text files"),
        ({"a.txt": b""}, "a.txt is empty"),
        ({"a.txt": b"\x89PNG" + bytes(range(256))}, "a.txt is a PNG image"),
        ({"a.txt": b"", "b.txt": b""}, "none of 2 files"),
        ({"a.md": b"words"}, "no text files"),
    ],
)
def test_a_folder_without_usable_text_is_one_sentence(tmp_path, files, says):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        prepare(config(tmp_path), 1)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepare(config(tmp_path / "none"), 1)


def test_a_text_too_short_to_split_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="too few"):
        prepare(config(tmp_path), 1)


def test_a_file_changed_while_it_is_read_is_not_taken_for_what_it_was(tmp_path, monkeypatch):
    shelf(tmp_path)
    original = encode.clean_text

    def meddle(found, *rest):
        yield from original(found, *rest)
        if found.name == "book 4.txt":
            with open(found.path, "a") as file:
                file.write("more")

    monkeypatch.setattr(encode, "clean_text", meddle)
    with pytest.raises(UserError, match=r"book 4\.txt changed"):
        prepare(config(tmp_path), 1)


@pytest.mark.skipif(not BOOKS.exists(), reason="the six novels are not on this machine")
def test_six_novels_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    corpus = prepare(config(BOOKS), 1337)
    assert len(corpus.read) == 6
    assert sum(file.split == "validation" for file in corpus.report) == 1
    assert all("license removed" in " ".join(file.notes) for file in corpus.report)
    whole = " ".join(text_of(corpus, corpus.train) + text_of(corpus, corpus.validation))
    assert "\r" not in whole
    assert "\ufeff" not in whole
    assert "PROJECT GUTENBERG EBOOK" not in whole.upper()
    assert "FULL LICENSE" not in whole


# --- token streams ------------------------------------------------------------------------------------


def test_a_stream_says_which_file_is_at_a_position():
    tokens = np.arange(30, dtype=np.uint16)
    files = [("a.txt", 0), ("b.txt", 10), ("c.txt", 20)]
    stream = TokenStream(tokens, [(0, 30)], [0, 10, 20], 0, files)
    assert [stream.place(at) for at in (0, 5, 10, 29, 30)] == [
        ("a.txt", 0.0), ("a.txt", 0.5), ("b.txt", 0.0), ("c.txt", 0.9), ("c.txt", 1.0)
    ]  # fmt: skip
    assert TokenStream(tokens, [(0, 30)], [0], 0).place(3) == ("", 0.0)


@given(st.data())
def test_a_stream_of_stretches_reads_like_one_text(data):
    tokens = np.arange(200, dtype=np.uint16)
    stretches = data.draw(
        st.lists(st.tuples(st.integers(0, 150), st.integers(0, 50)), min_size=1, max_size=8).filter(
            lambda parts: sum(count for _, count in parts) > 0
        )
    )
    whole = np.concatenate([tokens[offset : offset + count] for offset, count in stretches])
    stream = TokenStream(tokens, stretches, [0], 0)
    assert len(stream) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - start))
    np.testing.assert_array_equal(stream.read(start, count), whole[start : start + count])
    starts = np.array(data.draw(st.lists(st.integers(0, len(whole) - count), min_size=1, max_size=5)))
    np.testing.assert_array_equal(
        stream.gather(starts, count), np.stack([whole[s : s + count] for s in starts])
    )
    for low, size in ((-1, 1), (0, len(whole) + 1), (len(whole), 1)):
        with pytest.raises(IndexError):
            stream.read(low, size)
        with pytest.raises(IndexError):
            stream.gather(np.array([low]), size)


def test_other_books_in_the_same_folder_get_a_vocabulary_of_their_own(tmp_path):
    folder = shelf(tmp_path / "texts")
    first = prepare(config(folder, tokenizer="auto"), 1).tokenizer
    (folder / "one more.txt").write_text(story(99))
    assert prepare(config(folder, tokenizer="auto"), 1).tokenizer.hash == first.hash
    for number in range(6):
        (folder / f"book {number}.txt").write_text(story(number).upper())
    second = prepare(config(folder, tokenizer="auto"), 1).tokenizer
    assert second.hash != first.hash
    assert b" THAT" in second.tokens
    assert b" THAT" not in first.tokens
