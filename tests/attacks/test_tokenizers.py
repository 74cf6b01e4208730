"""Crafted tokenizers: each is refused with one sentence.

Add a line to ATTACKS: a name, what differs, words of the sentence.
"""

from __future__ import annotations

import base64
import json

import pytest
import torch

from core.data.tokenizer.tokenizer import CHARACTER_PATTERN, Tokenizer
from core.errors import UserError

BYTES = [base64.b64encode(bytes((byte,))).decode() for byte in range(256)]
RIGHT = {"format": 1, "kind": "bpe", "pattern": CHARACTER_PATTERN, "tokens": BYTES}

ATTACKS = {
    "a pattern of one letter": ({"pattern": "x"}, "skips part"),
    "a pattern without digits": ({"pattern": r"[^0-9]+"}, "skips part"),
    "a pattern without marks": ({"pattern": r"\\p{L}+|\\s+|\\p{N}"}, "skips part"),
    "a pattern that matches nothing": ({"pattern": ""}, "matches no character"),
    "a pattern that matches nothing at first": ({"pattern": "a*"}, "matches no character"),
    "an endless pattern": ({"pattern": "(" * 1999}, "valid regular expression"),
    "a pattern of a megabyte": ({"pattern": "." * 1_000_000}, "too long"),
    "a kind of a megabyte": ({"kind": "k" * 1_000_000}, "too long"),
    "no tokens": ({"tokens": []}, "256 of the 256 bytes are missing"),
    "a byte missing": ({"tokens": BYTES[1:]}, "1 of the 256 bytes are missing"),
    "a token twice": ({"tokens": [*BYTES, BYTES[3]]}, "occurs twice"),
    "other bytes under the name": ({"kind": "byte", "tokens": BYTES[::-1]}, "ids are not the bytes"),
    "tokens that are numbers": ({"tokens": [1, 2, 3]}, "damaged"),
    "tokens that are not base64": ({"tokens": ["\ud800"]}, "damaged"),
    "a pattern with half a surrogate pair": ({"pattern": CHARACTER_PATTERN + "|\ud800"}, "damaged"),
    "a pattern that is a list": ({"pattern": ["x"]}, "damaged"),
    "tokens that are an object": ({"tokens": dict.fromkeys(BYTES)}, "damaged"),
    "tokens that are a number": ({"tokens": 5}, "damaged"),
    "another format": ({"format": 10**30}, "not a tokenizer of mamba-tui"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_crafted_tokenizer_is_one_sentence(tmp_path, attack):
    changes, words = ATTACKS[attack]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(RIGHT | changes))
    with pytest.raises(UserError) as refused:
        Tokenizer.load(path)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b"\xff\xfe", b"9" * 5000, b"null", b'{"format": 1}']
)
def test_bytes_that_are_no_tokenizer_are_one_sentence(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError):
        Tokenizer.load(path)


@pytest.mark.parametrize("key", RIGHT)
def test_a_tensor_in_the_tokenizer_of_a_checkpoint_is_one_sentence(key):
    endless = torch.zeros(1, dtype=torch.uint8).expand(10**9)  # a few bytes on disk, gigabytes in a loop
    with pytest.raises(UserError, match=r"the\.pt is (not a|a damaged) tokenizer"):
        Tokenizer.from_dict(RIGHT | {key: endless}, "the.pt")
