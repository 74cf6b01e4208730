"""From a folder of text files to a `Corpus`: list, survey, split, find a vocabulary, encode, join.

Each step keeps what it found in the cache, so that only what is new or changed costs time. The work
runs on threads: tiktoken encodes outside the interpreter's lock, so they use all cores, start at once
and need no second copy of anything.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from core.config.schema import DataConfig
from core.data.corpus.assembly import join
from core.data.corpus.cache import FactStore, SplitStore, cache_folder, drop_stale, drop_vocabularies
from core.data.corpus.corpus_tokenizer import find_vocabulary
from core.data.corpus.encode import encode_texts
from core.data.corpus.encodings import check_declared
from core.data.corpus.listing import Found, Listing, list_texts
from core.data.corpus.progress import Callback, Reporter
from core.data.corpus.reading import Facts, ReadingOptions, survey
from core.data.corpus.split import TRAIN, Decisions, Document, decide
from core.data.corpus.token_store import TokenStore, cache_lock
from core.data.corpus.token_stream import Corpus
from core.data.corpus.workers import Text, available_cores, in_order
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError

_SAVE_SECONDS = 5.0


def prepare(
    config: DataConfig,
    seed: int,
    *,
    tokenizer: Tokenizer | None = None,
    split: Decisions | None = None,
    progress: Callback | None = None,
    threads: int | None = None,
) -> Corpus:
    """Make the texts under `config.dataset_dir` ready to train on.

    `tokenizer` encodes with a vocabulary that exists already, and `split` keeps the sides of an earlier
    corpus, as a resumed run needs, whatever has become of the cache. `progress` is called often, and
    ends the work by raising; what is finished stays. Raises UserError where there is no text to use.
    """
    root = config.dataset_dir
    if not os.path.exists(root):
        raise UserError(f"the dataset folder {root} does not exist: put .txt files there, or name another")
    options = ReadingOptions(check_declared(config.encoding), config.strip_gutenberg, config.unwrap_lines)
    report = Reporter(progress)
    folder = cache_folder(root)
    workers = threads or available_cores()
    with _without_collection(), cache_lock(folder, lambda: report.wait("waiting for another process")):
        listing = list_texts(root)
        texts, skipped = _survey_all(listing, options, folder, report, workers)
        if not texts:
            raise UserError(_nothing_usable(root, skipped))
        fraction = config.validation_fraction
        decisions, notice = _decide_sides(texts, options, folder, seed, fraction, split or {})
        if tokenizer is None:
            tokenizer = find_vocabulary(config, seed, texts, options, folder, report)
        drop_stale(folder)
        store = TokenStore(folder / f"tokens-{tokenizer.hash[:16]}", tokenizer.dtype, tokenizer.vocab_size)
        encoded = encode_texts(texts, options, fraction, tokenizer, store, report, workers)
        store.compact({text.key for text in texts})
        store.seal()
        notices = [notice for notice in (notice, store.notice) if notice]
        corpus = join(texts, tokenizer, store, skipped, notices)
    corpus.encoded_files = encoded
    corpus.split = (split or {}) | decisions
    if len(corpus.train) < 2 or len(corpus.validation) < 2:
        raise UserError(
            f"the text in {root} has {len(corpus.train) + len(corpus.validation)} tokens, too few to train "
            "on one part and hold out another: add text"
        )
    return corpus


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Facts of ten thousand files are a million small objects and no garbage: looking for some there
    takes longer than all the rest of opening a corpus. What lives on is not looked through later."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


def _nothing_usable(root: str, skipped: dict[str, str]) -> str:
    if not skipped:
        return f"there are no text files in {root}: put .txt or .txt.gz files there, or name another folder"
    name, reason = next(iter(skipped.items()))
    if len(skipped) == 1:
        return f"there is no usable text in {root}: {name} {reason}"
    return f"there is no usable text in {root}: none of {len(skipped)} files; {name}, for one, {reason}"


def _survey_all(
    listing: Listing, options: ReadingOptions, folder: Path, report: Reporter, workers: int
) -> tuple[list[Text], dict[str, str]]:
    """Facts of every file, from the cache where it has not changed: usable texts, and why not others."""
    store = FactStore(folder, options.key)
    facts = {found.name: store.get(found) for found in listing.found}
    new = [found for found in listing.found if facts[found.name] is None]
    report.begin("reading", sum(found.size for found in new))
    stop = threading.Event()

    def look(found: Found) -> tuple[int, Facts]:
        return time.time_ns(), survey(found, options, lambda size: report.count(size, found.name), stop)

    saved = time.monotonic()
    for found, (began, result) in in_order(new, look, workers, report, stop):
        facts[found.name] = result
        store.put(found, result, began)
        if time.monotonic() - saved > _SAVE_SECONDS:
            store.save()
            saved = time.monotonic()
    store.keep_only({found.name for found in listing.found})
    store.save()
    texts, skipped = [], dict(listing.skipped)
    for found in listing.found:
        fact = facts[found.name]
        assert fact is not None
        if fact.problem:
            skipped[found.name] = fact.problem
        else:
            texts.append(Text(found, fact))
    return texts, skipped


def _decide_sides(
    texts: list[Text], options: ReadingOptions, folder: Path, seed: int, fraction: float, carried: Decisions
) -> tuple[Decisions, str]:
    """Give every text its side; what was decided, and a sentence if that had to forget earlier decisions.

    What a run carries goes before what the cache remembers. Where they differ, the cache keeps its own
    for the runs that follow: its vocabularies were learned by it.
    """
    store = SplitStore(folder, seed, fraction)
    documents = [Document(text.found.name, text.facts.content, text.facts.bytes) for text in texts]
    cached = store.known()
    contents = {content for content, _ in carried.values()}
    known = {name: row for name, row in cached.items() if row[0] not in contents} | carried
    decisions = decide(documents, known, seed, fraction)
    held_before = {content for content, side in known.values() if side != TRAIN}
    moved = [
        name
        for name, (content, side) in decisions.items()
        if side != TRAIN and content not in held_before and known.get(name, ("", ""))[1] == TRAIN
    ]
    if moved:
        # Vocabularies were learned from what is now held out.
        drop_vocabularies(folder)
    differing = {name for name in cached.keys() & carried.keys() if cached[name][1] != carried[name][1]}
    store.update({name: value for name, value in decisions.items() if name not in differing})
    options_key = options.key
    for text in texts:
        text.decide(decisions[text.found.name][1], options_key, fraction)
    if moved:
        return decisions, (
            f"{_some(moved)} held out now, which earlier runs trained on: what was held out before is gone"
        )
    return decisions, store.notice


def _some(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files are"
