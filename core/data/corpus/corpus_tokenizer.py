"""The vocabulary of a corpus: as configured, learned from training text if necessary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from core.config.schema import DataConfig
from core.data.corpus.cache import VocabularyStore
from core.data.corpus.progress import Reporter
from core.data.corpus.reading import ReadingOptions, clean_text, seekable_text
from core.data.corpus.split import VALIDATION
from core.data.corpus.workers import Text
from core.data.tokenizer.bpe_training import train_bpe_apart
from core.data.tokenizer.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer
from core.data.tokenizer.vocabulary import auto_vocabulary_size, gpt2_tokenizer, train_bpe

# A vocabulary is learned from at most this much text; more hardly changes the merges.
LEARNING_CHARACTERS = 24_000_000
# A vocabulary is kept while the amount of text stays within this factor of the text it was learned from,
KEPT_WITHIN = 4
# and while this share of that text still exists.
KEPT_SHARE = 0.5
# Up to this much text, learning takes less time than starting another process.
AT_ONCE_BYTES = 1_000_000
_HANDFUL = 1 << 15


def find_vocabulary(
    config: DataConfig, seed: int, texts: list[Text], options: ReadingOptions, folder: Path, report: Reporter
) -> Tokenizer:
    """The configured tokenizer; one that was learned earlier is kept while it fits."""
    kind = config.tokenizer
    if kind == "byte":
        return byte_tokenizer()
    if kind == "gpt2":
        return gpt2_tokenizer()
    if kind not in ("auto", "char"):
        return Tokenizer.load(kind)
    fraction = config.validation_fraction
    size = config.vocab_size if kind == "auto" else 0
    store = VocabularyStore(folder, f"{kind}:{size}:{seed}:{fraction!r}:{options.key}")
    training = _distinct([text for text in texts if text.side != VALIDATION])
    sizes = {text.facts.content: text.facts.bytes for text in training}
    amount = sum(sizes.values())
    kept = store.load()
    if kept is not None and still_fits(kept[1], sizes):
        return kept[0]
    if kind == "char":
        report.begin("collecting characters", amount)
        characters: set[str] = set()
        for text in training_text(training, options, fraction, None, report):
            characters |= set(text)
        tokenizer = char_tokenizer(characters)
    else:
        report.begin("learning a vocabulary", min(amount, LEARNING_CHARACTERS))
        sample = training_text(training, options, fraction, LEARNING_CHARACTERS, report)
        size = size or auto_vocabulary_size(amount)
        if amount < AT_ONCE_BYTES:
            tokenizer = train_bpe(sample, size)
        else:
            tokenizer = train_bpe_apart(sample, size, report.tell)
    store.save(tokenizer, sizes)
    return tokenizer


def still_fits(learned_from: dict[str, int], now: dict[str, int]) -> bool:
    """Whether a vocabulary learned from some texts, bytes by content, suits the current training texts.

    Their amount alone says nothing: other books in the same folder would be read in the words of the first.
    """
    before, amount = sum(learned_from.values()), sum(now.values())
    still_here = sum(size for content, size in learned_from.items() if content in now)
    return before / KEPT_WITHIN <= amount <= before * KEPT_WITHIN and still_here >= KEPT_SHARE * before


def training_text(
    training: list[Text], options: ReadingOptions, fraction: float, most: int | None, report: Reporter
) -> Iterator[str]:
    """Training text only, at most `most` characters, a fair share from every file.

    Validation text is never read here: a text whose tail is for validation is read up to its tail.
    """
    ends = [tail.target if (tail := text.tail(fraction)) else text.facts.characters for text in training]
    for text, end, share in zip(training, ends, fair_shares(ends, most), strict=True):
        source, encoding = text.source, text.facts.encoding
        if share < end and (slices := seekable_text(source, encoding, end, share)) is not None:
            stretches = slices
        else:
            stretches = (stretch for _, stretch in clean_text(source, encoding, options))
        left = share
        for stretch in stretches:
            for low in range(0, min(left, len(stretch)), _HANDFUL):
                yield stretch[low : min(low + _HANDFUL, left)]
            report.add(min(left, len(stretch)), source.name)
            left -= len(stretch)
            if left <= 0:
                break


def _distinct(texts: list[Text]) -> list[Text]:
    """One of each set of copies."""
    return list({text.facts.content: text for text in texts}.values())


def fair_shares(sizes: list[int], most: int | None) -> list[int]:
    """How much to take of each so that the sum is `most`: small ones whole, the others equally."""
    if most is None or sum(sizes) <= most:
        return sizes
    left, share = most, 0
    for rank, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - rank)
        if size > share:
            break
        left -= size
    return [min(size, share) for size in sizes]
