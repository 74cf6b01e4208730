import hashlib
import json
import random
import shutil
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.corpus import prepare, read_split, save_split
from core.data.corpus.split import TAIL, TRAIN, VALIDATION, Document, decide
from core.errors import UserError
from tests.data.test_corpus import config, shelf, splits, story

fractions = st.floats(0.01, 0.5)
seeds = st.integers(0, 2**63 - 1)


@st.composite
def shelves(draw, most=40):
    """Documents with different names; contents may repeat, and the same content has the same size."""
    contents = draw(st.lists(st.integers(0, 30), min_size=1, max_size=most))
    sizes = [draw(st.integers(1, 10**7)) for _ in range(31)]
    return [Document(f"book {i}", f"text {c}", sizes[c]) for i, c in enumerate(contents)]


def sides_by_content(decisions):
    sides = defaultdict(set)
    for content, side in decisions.values():
        sides[content].add(side)
    return sides


@given(shelves(), seeds, fractions)
def test_something_validates_and_something_is_left(documents, seed, fraction):
    decisions = decide(documents, {}, seed, fraction)
    assert set(decisions) == {document.name for document in documents}
    sides = {side for _, side in decisions.values()}
    assert sides & {VALIDATION, TAIL}
    assert sides & {TRAIN, TAIL}


@given(shelves(), seeds, fractions)
def test_copies_share_a_side(documents, seed, fraction):
    assert all(len(sides) == 1 for sides in sides_by_content(decide(documents, {}, seed, fraction)).values())


@given(shelves(), seeds, fractions, st.randoms())
def test_the_order_of_the_files_does_not_matter(documents, seed, fraction, random):
    shuffled = documents[:]
    random.shuffle(shuffled)
    assert decide(shuffled, {}, seed, fraction) == decide(documents, {}, seed, fraction)


@given(shelves(), seeds, fractions, st.data())
def test_books_that_arrive_later_move_no_book(documents, seed, fraction, data):
    """In whatever order books arrive: decisions stay, under their name and any other."""
    known = {}
    shelf = []
    while len(shelf) < len(documents):
        shelf = documents[: data.draw(st.integers(len(shelf) + 1, len(documents)))]
        decisions = decide(shelf, known, seed, fraction)
        for name, (_, side) in known.items():
            assert decisions[name][1] == side
        renamed = [Document(f"new name of {d.name}", d.content, d.size) for d in shelf]
        again = decide(renamed, decisions, seed, fraction)
        assert dict(again.values()) == dict(decisions.values())
        known = known | decisions


@given(shelves(), seeds, fractions)
def test_an_edited_book_keeps_its_side(documents, seed, fraction):
    known = decide(documents, {}, seed, fraction)
    edited = [Document(d.name, f"{d.content} of {d.name}, edited", d.size + 1) for d in documents]
    decisions = decide(edited, known, seed, fraction)
    assert all(decisions[name][1] == side for name, (_, side) in known.items())


def test_where_copies_disagree_no_validation_text_becomes_training_text():
    known = {"a": ("one", VALIDATION), "b": ("two", TRAIN), "c": ("three", TAIL)}
    same = [Document(name, "one", 5) for name in "abc"]
    assert {side for _, side in decide(same, known, 1, 0.1).values()} == {VALIDATION}


@given(shelves(), seeds, fractions)
def test_when_all_validation_text_is_gone_something_else_validates(documents, seed, fraction):
    known = decide(documents, {}, seed, fraction)
    rest = [document for document in documents if known[document.name][1] == TRAIN]
    if rest:
        assert {side for _, side in decide(rest, known, seed, fraction).values()} != {TRAIN}


def test_few_documents_validate_by_their_tails():
    few = [Document(f"{i}", f"{i}", 1000) for i in range(3)]
    assert {side for _, side in decide(few, {}, 1, 0.1).values()} == {TAIL}


@given(seeds)
def test_many_documents_come_close_to_the_wanted_share(seed):
    many = [Document(f"{i}", f"{i}", 900 + i % 200) for i in range(500)]
    decisions = decide(many, {}, seed, 0.1)
    held = sum(d.size for d in many if decisions[d.name][1] == VALIDATION)
    assert 0.09 < held / sum(d.size for d in many) < 0.13


@given(seeds)
def test_six_novels_hold_out_one_of_sensible_size(seed):
    sizes = [2068089, 2001188, 1847718, 1276201, 724725, 3359542]
    novels = [Document(f"{i}", f"{i}", size) for i, size in enumerate(sizes)]
    held = [d.size for d in novels if decide(novels, {}, seed, 0.1)[d.name][1] == VALIDATION]
    assert held in ([1276201], [724725])


def test_one_giant_among_notes_validates_by_its_tail():
    shelf = [Document("giant", "g", 10**9), *(Document(f"{i}", f"{i}", 100) for i in range(5))]
    assert decide(shelf, {}, 1, 0.1)["giant"][1] == TAIL


def test_seeds_choose_differently():
    many = [Document(f"{i}", f"{i}", 1000) for i in range(50)]
    chosen = {
        tuple(name for name, (_, side) in decide(many, {}, seed, 0.1).items() if side == VALIDATION)
        for seed in range(5)
    }
    assert len(chosen) == 5


def rearranged(folder):
    """A corpus, and books and cache afterwards for which a new choice would be different."""
    corpus = prepare(config(shelf(folder)), 1)
    shutil.rmtree(corpus.cache)
    for number in range(20):
        (folder / f"new {number}.txt").write_text(story(100 + number))
    return corpus


def side_of(corpus, before, side):
    return {name for name in before.split if splits(corpus).get(name) == side}


def test_a_carried_split_outlives_the_cache_and_other_books(tmp_path):
    first = rearranged(tmp_path / "texts")
    (held,) = side_of(first, first, VALIDATION)
    again = prepare(config(tmp_path / "texts"), 1, split=first.split)
    assert side_of(again, first, VALIDATION) == {held}
    assert again.split.items() >= first.split.items()
    assert set(again.split) == set(splits(again))
    # The record was lost, so that it now says what the run says.
    assert splits(prepare(config(tmp_path / "texts"), 1)) == splits(again)
    # And without what is carried another choice is made: this test can fail.
    shutil.rmtree(again.cache)
    assert side_of(prepare(config(tmp_path / "texts"), 1), first, VALIDATION) != {held}


def test_a_record_that_says_otherwise_is_left_to_other_runs(tmp_path):
    first = rearranged(tmp_path / "texts")
    other = prepare(config(tmp_path / "texts"), 1)
    assert side_of(other, first, VALIDATION) != side_of(first, first, VALIDATION)
    # A copy of what the run trains on is trained on too, whatever the record says of it.
    (was_trained_on,) = side_of(other, first, VALIDATION)
    text = (tmp_path / "texts" / was_trained_on).read_text()
    (tmp_path / "texts" / "copy.txt").write_text(text)
    assert splits(prepare(config(tmp_path / "texts"), 1))["copy.txt"] == VALIDATION
    again = prepare(config(tmp_path / "texts"), 1, split=first.split)
    for side in (TRAIN, VALIDATION):
        assert side_of(again, first, side) == side_of(first, first, side)
    assert splits(again)["copy.txt"] == TRAIN
    assert splits(other).items() <= splits(prepare(config(tmp_path / "texts"), 1)).items()


@pytest.mark.parametrize("damage", [b"", b"[", b"[]", b'{"a": 3}', b'{"a": ["b"]}', b"\xff"])
def test_a_damaged_split_is_none(tmp_path, damage):
    path = tmp_path / "split.json"
    assert read_split(path) is None
    path.write_bytes(damage)
    assert read_split(path) is None
    save_split(path, {"a": ("hash", TAIL)})
    assert read_split(path) == {"a": ("hash", TAIL)}
    assert json.loads(path.read_bytes()) == {"a": ["hash", TAIL]}
    with pytest.raises(UserError, match="cannot write the split"):
        save_split(tmp_path / "no folder" / "split.json", {})


def novel(accents="é"):
    return "".join(
        f"Le caf{accents} nombre {number} fut trouv{accents}, dit l'homme n° {number * 7}.\n"
        for number in range(60)
    )


@pytest.mark.parametrize("seed", range(8))
def test_one_novel_in_several_encodings_is_on_one_side(tmp_path, seed):
    for number in range(5):
        (tmp_path / f"other {number}.txt").write_text(story(number))
    text = novel()
    copies = {
        "a.txt": text.encode(),
        "b.txt": text.encode("cp1252"),
        "c.txt": text.replace("\n", "\r\n").encode("utf-16"),
        "d.txt": text.encode("utf-8-sig") + b"\n\n",
        "e.txt": text.replace(" ", "\n").upper().encode(),
    }
    for name, data in copies.items():
        (tmp_path / name).write_bytes(data)
    corpus = prepare(config(tmp_path), seed)
    assert len({splits(corpus)[name] for name in copies}) == 1
    same = {file.name: file.duplicate_of for file in corpus.report}
    assert (same["b.txt"], same["c.txt"]) == ("a.txt", "a.txt")


def test_a_record_of_an_earlier_version_is_followed_under_another_name_too(tmp_path):
    shelf(tmp_path, count=8)
    first = prepare(config(tmp_path), 1)
    (held,) = [name for name, side in splits(first).items() if side == VALIDATION]
    raw = hashlib.blake2b((tmp_path / held).read_bytes(), digest_size=16).hexdigest()
    (tmp_path / held).rename(tmp_path / "renamed.txt")
    sides = splits(prepare(config(tmp_path), 5, split={held: (raw, VALIDATION)}))
    assert sides["renamed.txt"] == VALIDATION


def test_editions_get_a_note_with_each_others_names(tmp_path):
    chance = random.Random(1)
    words = [story(number, 40) for number in range(60)]
    for number in range(8):
        (tmp_path / f"other {number}.txt").write_text(story(number, 3000))
    first = " ".join(words)
    second = "A foreword of the editor. " * 9 + " ".join(
        part if chance.random() < 0.95 else part[::-1] for part in words
    )
    (tmp_path / "one.txt").write_text(first)
    (tmp_path / "two.txt").write_text(second.replace("\n", " "))
    seeds = [prepare(config(tmp_path), seed) for seed in range(12)]
    notes = {file.name: " ".join(file.notes) for file in seeds[0].report}
    assert "nearly the same text as two.txt (about" in notes["one.txt"]
    assert "nearly the same text as one.txt (about" in notes["two.txt"]
    assert not any("nearly" in notes[f"other {number}.txt"] for number in range(8))
    apart = [corpus for corpus in seeds if splits(corpus)["one.txt"] != splits(corpus)["two.txt"]]
    assert apart
    for corpus in seeds:
        said = any("one.txt" in notice and "two.txt" in notice for notice in corpus.notices)
        assert said == (corpus in apart)
