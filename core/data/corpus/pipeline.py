"""From a folder of text files to a `Corpus`: list, survey, split, choose a vocabulary, encode, join.

Each stage keeps its results in the cache, so only new or changed files take time. The work runs on threads:
tiktoken releases the interpreter's lock while it encodes, so threads use all cores, start at once and need no
copies.
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
from core.data.corpus.known_size import remember_size
from core.data.corpus.listing import Listing, SourceFile, list_texts
from core.data.corpus.progress import Callback, Reporter
from core.data.corpus.reading import ReadingOptions
from core.data.corpus.split import TRAIN, Decisions, Document, decide
from core.data.corpus.survey import Facts, survey
from core.data.corpus.token_store import TokenStore, cache_lock
from core.data.corpus.token_stream import Corpus
from core.data.corpus.workers import Text, in_order, note_near_copies
from core.data.tokenizer.tokenizer import Tokenizer
from core.errors import UserError
from core.system.hardware import available_cores

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
    """Prepare the texts under `config.dataset_dir` for training.

    With `tokenizer`, an existing vocabulary is used, and `split` keeps the sides of an earlier corpus, as a
    resumed run needs, whatever happened to the cache. `progress` is called often and may raise to end the
    work; finished work is kept. Raises UserError if there is no usable text.
    """
    began = time.monotonic()
    given = tokenizer is not None or split is not None
    root = config.dataset_dir
    if not os.path.exists(root):
        raise UserError(
            f"the dataset folder {root} does not exist; put .txt files there, or name another folder"
        )
    options = ReadingOptions(
        check_declared(config.encoding),
        config.strip_gutenberg,
        config.unwrap_lines,
        config.document_marks == "cut",
    )
    report = Reporter(progress)
    folder = cache_folder(root)
    workers = threads or available_cores()
    with _without_collection(), cache_lock(folder, lambda: report.wait("waiting for another process")):
        listing = list_texts(root, config.outside_links)
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
        alike = note_near_copies(texts)
        notices = [notice for notice in (notice, store.notice, alike) if notice]
        corpus = join(texts, tokenizer, store, skipped, notices)
    corpus.encoded_files = encoded
    corpus.prepare_seconds = time.monotonic() - began
    if encoded == len(texts):
        corpus.new_bytes = corpus.train.text_bytes + corpus.validation.text_bytes
    corpus.split = (split or {}) | decisions
    if len(corpus.train) < 2 or len(corpus.validation) < 2:
        raise UserError(
            f"the text in {root} has {len(corpus.train) + len(corpus.validation)} tokens, too few for "
            "training and validation: add text"
        )
    if not given:  # a resumed run may read the text in its own way
        remember_size(config, seed, listing.sources, corpus)
    return corpus


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Switch off garbage collection.

    The facts of ten thousand files are a million small objects without cycles, and searching them takes
    longer than everything else. Survivors are exempt afterwards.
    """
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
        return f"there are no text files in {root}; put .txt or .txt.gz files there, or name another folder"
    name, reason = next(iter(skipped.items()))
    if len(skipped) == 1:
        return f"there is no usable text in {root}: {name} {reason}"
    return f"there is no usable text in {root}: none of {len(skipped)} files, for example {name} {reason}"


def _survey_all(
    listing: Listing, options: ReadingOptions, folder: Path, report: Reporter, workers: int
) -> tuple[list[Text], dict[str, str]]:
    """The usable texts, and the reason for every unusable file; unchanged files come from the cache."""
    store = FactStore(folder, options.key)
    facts = {source.name: store.get(source) for source in listing.sources}
    new = [source for source in listing.sources if facts[source.name] is None]
    report.begin("reading", sum(source.size for source in new))
    stop = threading.Event()

    def look(source: SourceFile) -> tuple[int, Facts]:
        return time.time_ns(), survey(source, options, lambda size: report.count(size, source.name), stop)

    saved = time.monotonic()
    for source, (began, result) in in_order(new, look, workers, report, stop):
        facts[source.name] = result
        store.put(source, result, began)
        if time.monotonic() - saved > _SAVE_SECONDS:
            store.save()
            saved = time.monotonic()
    store.keep_only({source.name for source in listing.sources})
    store.save()
    texts, skipped = [], dict(listing.skipped)
    for source in listing.sources:
        fact = facts[source.name]
        assert fact is not None
        if fact.problem:
            skipped[source.name] = fact.problem
        else:
            texts.append(Text(source, fact))
    return texts, skipped


def _decide_sides(
    texts: list[Text], options: ReadingOptions, folder: Path, seed: int, fraction: float, carried: Decisions
) -> tuple[Decisions, str]:
    """Give every text its side. Returns the decisions, and a sentence if earlier ones had to be dropped.

    A run's own record takes precedence over the cache. If they differ, the cache keeps its decision for later
    runs, because its vocabularies were learned with it.
    """
    store = SplitStore(folder, seed, fraction)
    documents = [
        Document(text.source.name, text.facts.letters, text.facts.bytes, text.facts.raw) for text in texts
    ]
    cached = store.known()
    contents = {content for content, _ in carried.values()}
    known = {name: row for name, row in cached.items() if row[0] not in contents} | carried
    decisions = decide(documents, known, seed, fraction)
    validated_before = {content for content, side in known.values() if side != TRAIN}
    moved = [
        name
        for name, (content, side) in decisions.items()
        if side != TRAIN and content not in validated_before and known.get(name, ("", ""))[1] == TRAIN
    ]
    if moved:
        # Vocabularies were learned from text that is now for validation.
        drop_vocabularies(folder)
    differing = {name for name in cached.keys() & carried.keys() if cached[name][1] != carried[name][1]}
    store.update({name: value for name, value in decisions.items() if name not in differing})
    options_key = options.key
    for text in texts:
        text.decide(decisions[text.source.name][1], options_key, fraction)
    if moved:
        return decisions, (
            f"{_some(moved)} validation text now; earlier runs trained on it. The text used before is gone"
        )
    return decisions, store.notice


def _some(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files are"
