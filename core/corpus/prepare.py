"""From a folder of text files to a `Corpus`: list, survey, split, find a vocabulary, encode, join.

Each step keeps what it found in the cache, so that only what is new or changed costs time. Encoding
runs on threads: tiktoken works outside the interpreter's lock, and threads need no second copy of
anything.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from core.config import DataConfig
from core.corpus.cache import FactStore, SplitStore, VocabularyStore, cache_folder
from core.corpus.encodings import check_declared
from core.corpus.listing import Found, Listing, list_texts
from core.corpus.progress import Callback, Reporter
from core.corpus.reading import Facts, Piece, ReadingOptions, Tail, clean_text, pieces, survey
from core.corpus.split import TAIL, TRAIN, VALIDATION, Decisions, Document, decide
from core.corpus.store import Entry, TokenStore, cache_lock, disk_errors
from core.corpus.stream import Corpus, FileReport, TokenStream
from core.errors import UserError
from core.tokenizer import Ids, Tokenizer, byte_tokenizer, char_tokenizer
from core.vocabulary import auto_vocabulary_size, gpt2_tokenizer, train_bpe

A = TypeVar("A")
B = TypeVar("B")

# Text that a vocabulary is learned from. More changes the merges little and costs memory.
LEARNING_CHARACTERS = 24_000_000
COMMIT_SECONDS = 1.0


@dataclass
class _Text:
    """A usable file on its way through the steps."""

    found: Found
    facts: Facts
    side: str = TRAIN

    def tail(self, fraction: float) -> Tail | None:
        return Tail.of(self.facts.characters, fraction) if self.side == TAIL else None

    def key(self, options: ReadingOptions, fraction: float) -> str:
        """What decides the ids of this text under one tokenizer."""
        cut = repr(fraction) if self.side == TAIL else ""
        return f"{self.facts.content}:{self.facts.encoding}:{options.key}:{cut}"


def prepare(
    config: DataConfig,
    seed: int,
    *,
    tokenizer: Tokenizer | None = None,
    progress: Callback | None = None,
    threads: int | None = None,
) -> Corpus:
    """Make the texts under `config.dataset_dir` ready to train on.

    `tokenizer` encodes with a vocabulary that exists already, as a resumed run needs. `progress` is
    called often, and ends the work by raising; what is finished stays. Raises UserError where there
    is no text to use.
    """
    root = config.dataset_dir
    if not os.path.exists(root):
        raise UserError(f"the dataset folder {root} does not exist: put .txt files there, or name another")
    options = ReadingOptions(check_declared(config.encoding), config.strip_gutenberg, config.unwrap_lines)
    report = Reporter(progress)
    folder = cache_folder(root)
    workers = threads or available_cores()
    with disk_errors(folder), cache_lock(folder, lambda: report.tell("waiting for another process")):
        listing = list_texts(root)
        texts, skipped = _survey_all(listing, options, folder, report, workers)
        if not texts:
            raise UserError(_nothing_usable(root, skipped))
        fraction = config.validation_fraction
        _decide_sides(texts, folder, seed, fraction)
        if tokenizer is None:
            tokenizer = _vocabulary(config, seed, texts, options, folder, report)
        store = TokenStore(folder / f"tokens-{tokenizer.hash[:16]}", tokenizer.dtype)
        encoded = _encode_all(texts, options, fraction, tokenizer, store, report, workers)
        store.compact({text.key(options, fraction) for text in texts})
        notices = [store.notice] if store.notice else []
        corpus = _join(texts, options, fraction, tokenizer, store, skipped, notices)
    corpus.encoded_files = encoded
    if len(corpus.train) < 2 or len(corpus.validation) < 2:
        raise UserError(
            f"the text in {root} has {len(corpus.train) + len(corpus.validation)} tokens, too few to train "
            "on one part and hold out another: add text"
        )
    return corpus


def available_cores() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _nothing_usable(root: str, skipped: dict[str, str]) -> str:
    if not skipped:
        return f"there are no text files in {root}: put .txt or .txt.gz files there, or name another folder"
    name, reason = next(iter(skipped.items()))
    if len(skipped) == 1:
        return f"there is no usable text in {root}: {name} {reason}"
    return f"there is no usable text in {root}: none of {len(skipped)} files; {name}, for one, {reason}"


def _survey_all(
    listing: Listing, options: ReadingOptions, folder: Path, report: Reporter, workers: int
) -> tuple[list[_Text], dict[str, str]]:
    """Facts of every file, from the cache where it has not changed."""
    store = FactStore(folder, options.key)
    facts = {found.name: store.get(found) for found in listing.found}
    new = [found for found in listing.found if facts[found.name] is None]
    report.begin("reading", sum(found.size for found in new))
    last_save = time.monotonic()

    def look(found: Found) -> tuple[int, Facts]:
        return time.time_ns(), survey(found, options)

    for found, (began, result) in _in_order(new, look, workers):
        facts[found.name] = result
        store.put(found, result, began)
        report.add(found.size, found.name)
        if time.monotonic() - last_save > 5:
            store.save()
            last_save = time.monotonic()
    store.keep_only({found.name for found in listing.found})
    store.save()
    texts, skipped = [], dict(listing.skipped)
    for found in listing.found:
        fact = facts[found.name]
        assert fact is not None
        if fact.problem:
            skipped[found.name] = fact.problem
        else:
            texts.append(_Text(found, fact))
    return texts, skipped


def _in_order(items: Iterable[A], function: Callable[[A], B], workers: int) -> Iterator[tuple[A, B]]:
    """(item, function(item)) in order, a bounded number of them at work at a time."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[A, Future[B]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > 4 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _decide_sides(texts: list[_Text], folder: Path, seed: int, fraction: float) -> None:
    store = SplitStore(folder, seed, fraction)
    documents = [Document(text.found.name, text.facts.content, text.facts.bytes) for text in texts]
    decisions: Decisions = decide(documents, store.known(), seed, fraction)
    store.update(decisions)
    for text in texts:
        text.side = decisions[text.found.name][1]


def _vocabulary(
    config: DataConfig, seed: int, texts: list[_Text], options: ReadingOptions, folder: Path, report: Reporter
) -> Tokenizer:
    """The tokenizer that the configuration asks for; one learned earlier is kept while it fits."""
    kind = config.tokenizer
    if kind == "byte":
        return byte_tokenizer()
    if kind == "gpt2":
        return gpt2_tokenizer()
    if kind not in ("auto", "char"):
        return Tokenizer.load(kind)
    fraction = config.validation_fraction
    store = VocabularyStore(folder, f"{kind}:{config.vocab_size}:{seed}:{fraction!r}:{options.key}")
    training = [text for text in texts if text.side != VALIDATION]
    amount = sum(text.facts.bytes for text in training)
    kept = store.load()
    if kept is not None and kept[1] / 4 <= amount <= kept[1] * 4:
        return kept[0]
    if kind == "char":
        report.begin("collecting characters", amount)
        characters: set[str] = set()
        for text in _training_text(training, options, fraction, None, report):
            characters |= set(text)
        tokenizer = char_tokenizer(characters)
    else:
        size = config.vocab_size or auto_vocabulary_size(amount)
        report.begin("learning a vocabulary", min(amount, LEARNING_CHARACTERS))
        tokenizer = train_bpe(_training_text(training, options, fraction, LEARNING_CHARACTERS, report), size)
    store.save(tokenizer, amount)
    return tokenizer


def _training_text(
    training: list[_Text], options: ReadingOptions, fraction: float, most: int | None, report: Reporter
) -> Iterator[str]:
    """Training text only, at most `most` characters of it, from every file its fair share."""
    shares = _shares([text.facts.characters for text in training], most)
    seen: set[str] = set()
    for text, share in zip(training, shares, strict=True):
        if text.facts.content in seen:
            continue
        seen.add(text.facts.content)
        tail = text.tail(fraction)
        left = min(share, tail.target) if tail else share
        for _, stretch in clean_text(text.found, text.facts.encoding, options):
            yield stretch[:left]
            report.add(min(left, len(stretch)), text.found.name)
            left -= len(stretch)
            if left <= 0:
                break


def _shares(sizes: list[int], most: int | None) -> list[int]:
    """How much to take of each so that the sum is `most`: small ones whole, the rest alike."""
    if most is None or sum(sizes) <= most:
        return sizes
    left, share = most, 0
    for rank, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - rank)
        if size > share:
            break
        left -= size
    return [min(size, share) for size in sizes]


@dataclass
class _Draft:
    """The entry of a text while its pieces arrive."""

    offset: int
    count: int = 0
    documents: tuple[int, ...] = ()
    cut: int | None = None
    head_bytes: int = 0
    tail_bytes: int = 0

    def add(self, piece: Piece, count: int, size: int) -> None:
        if piece.opens:
            self.documents += (self.count,)
        if piece.tail and self.cut is None:
            self.cut = self.count
        self.count += count
        if piece.tail:
            self.tail_bytes += size
        else:
            self.head_bytes += size

    def entry(self) -> Entry:
        return Entry(self.offset, self.count, self.documents, self.cut, self.head_bytes, self.tail_bytes)


def _encode_all(
    texts: list[_Text],
    options: ReadingOptions,
    fraction: float,
    tokenizer: Tokenizer,
    store: TokenStore,
    report: Reporter,
    workers: int,
) -> int:
    """Encode every text that the store does not hold yet; how many that were."""
    missing = {text.key(options, fraction): text for text in texts}
    missing = {key: text for key, text in missing.items() if key not in store.entries}
    report.begin("encoding", sum(text.facts.bytes for text in missing.values()))
    if not missing:
        return 0
    _ = tokenizer.encode("the encoder is built before the threads need it")

    def all_pieces() -> Iterator[tuple[str, _Text, Piece | None]]:
        for key, text in missing.items():
            try:
                for piece in pieces(
                    clean_text(text.found, text.facts.encoding, options), text.tail(fraction)
                ):
                    yield key, text, piece
            except (OSError, UnicodeDecodeError, EOFError) as error:
                raise UserError(f"{text.found.name} could not be read to its end: {error}") from error
            _check_unchanged(text.found)
            yield key, text, None

    def encode(item: tuple[str, _Text, Piece | None]) -> tuple[Ids | None, int]:
        piece = item[2]
        return (None, 0) if piece is None else (tokenizer.encode(piece.text), len(piece.text.encode()))

    opening = np.array([tokenizer.eot], np.uint32)
    ready: dict[str, Entry] = {}
    draft = _Draft(store.end)
    committed = time.monotonic()
    try:
        for (key, text, piece), (ids, size) in _in_order(all_pieces(), encode, workers):
            if piece is None or ids is None:
                ready[key] = draft.entry()
                draft = _Draft(draft.offset + draft.count)
                if time.monotonic() - committed > COMMIT_SECONDS:
                    store.commit(ready)
                    ready, committed = {}, time.monotonic()
                continue
            if piece.opens:
                store.append(opening)
            store.append(ids)
            draft.add(piece, len(ids) + piece.opens, size)
            report.add(size, text.found.name)
        store.commit(ready)
    except BaseException:
        with contextlib.suppress(UserError):
            store.commit(ready)
        store.abandon()
        raise
    return len(missing)


def _check_unchanged(found: Found) -> None:
    info = os.stat(found.path)
    if (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino) != found.signature:
        raise UserError(f"{found.name} was changed while it was being read: start again")


def _join(
    texts: list[_Text],
    options: ReadingOptions,
    fraction: float,
    tokenizer: Tokenizer,
    store: TokenStore,
    skipped: dict[str, str],
    notices: list[str],
) -> Corpus:
    """Streams in the order of the files' names, and the report."""
    sides: dict[str, _Side] = {TRAIN: _Side(), VALIDATION: _Side()}
    first_names: dict[str, str] = {}
    reports = []
    for text in texts:
        entry = store.entries[text.key(options, fraction)]
        before = len(sides[VALIDATION])
        cut = entry.count if entry.cut is None else entry.cut
        if text.side == VALIDATION:
            sides[VALIDATION].add(entry, 0, entry.count, entry.head_bytes)
        else:
            sides[TRAIN].add(entry, 0, cut, entry.head_bytes)
            sides[VALIDATION].add(entry, cut, entry.count, entry.tail_bytes)
        twin = first_names.setdefault(text.facts.content, text.found.name)
        reports.append(
            FileReport(
                name=text.found.name,
                split=text.side,
                encoding=text.facts.encoding,
                bytes=entry.head_bytes + entry.tail_bytes,
                tokens=entry.count,
                validation_tokens=len(sides[VALIDATION]) - before,
                documents=text.facts.documents,
                longest_line=text.facts.longest_line,
                duplicate_of=twin if twin != text.found.name else "",
                notes=([text.found.note] if text.found.note else []) + text.facts.notes,
            )
        )
    reports += [FileReport(name=name, split="skipped", notes=[reason]) for name, reason in skipped.items()]
    reports.sort(key=lambda item: item.name)
    tokens = store.tokens()
    return Corpus(
        tokenizer,
        sides[TRAIN].stream(tokens),
        sides[VALIDATION].stream(tokens),
        reports,
        notices,
        store.folder,
    )


class _Side:
    """The stretches of one split, collected."""

    def __init__(self) -> None:
        self.stretches: list[tuple[int, int]] = []
        self.documents: list[int] = []
        self.bytes = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, entry: Entry, low: int, high: int, size: int) -> None:
        """Tokens low..high of an entry."""
        if high <= low:
            return
        self.stretches.append((entry.offset + low, high - low))
        self.documents += [self._length + start - low for start in entry.documents if low <= start < high]
        self._length += high - low
        self.bytes += size

    def stream(self, tokens: np.ndarray) -> TokenStream:
        return TokenStream(tokens, self.stretches, self.documents, self.bytes)
