"""Preparing under real faults: processes killed, disks full, caches damaged, two at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from core.config.schema import DataConfig
from core.data.corpus import Progress, encode, prepare
from core.data.corpus.progress import Reporter
from core.data.corpus.survey import _Watch
from core.data.corpus.token_store import JOURNAL, TokenStore, cache_lock
from core.data.tokenizer import bpe_training as learner
from core.data.tokenizer.vocabulary import train_bpe
from core.errors import UserError
from tests.data.test_corpus import config, shelf, splits, story, text_of

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parents[2]

CHILD = """
import sys
from core.config.schema import DataConfig
from core.data.corpus import prepare
from core.data.corpus import encode
from core.data.corpus import pipeline
encode.COMMIT_SECONDS = -1.0
texts, seen = int(sys.argv[2]), set()
def tell(progress):
    print(progress.stage, progress.done, flush=True)
    if progress.stage == "encoding" and progress.done and progress.done not in seen:
        seen.add(progress.done)
        if len(seen) == texts:
            print("holding", flush=True)
            sys.stdin.readline()
pipeline.Reporter.__init__.__defaults__ = (1e9,)
corpus = prepare(DataConfig(dataset_dir=sys.argv[1], tokenizer="byte"), 1, progress=tell)
print("encoded", corpus.encoded_files, len(corpus.train), flush=True)
"""


def start(folder, hold_at=0):
    """A process that prepares text; once this many texts are encoded, it waits for a line of input."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(hold_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def until_said(child, word):
    """The output of a process up to the first line that contains a word."""
    lines = []
    for line in child.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"it never said {word!r}: {lines}")


def whole(folder):
    return sorted(path.read_text() for path in folder.glob("*.txt"))


def read_back(corpus):
    return sorted(text_of(corpus, corpus.train) + text_of(corpus, corpus.validation))


def test_killed_in_the_middle_the_next_start_does_the_rest_only(tmp_path):
    shelf(tmp_path, count=12)
    with start(tmp_path, hold_at=5) as child:
        until_said(child, "holding")
        os.kill(child.pid, signal.SIGKILL)
    corpus = prepare(config(tmp_path), 1)
    assert corpus.encoded_files == 12 - 4
    assert read_back(corpus) == whole(tmp_path)


def test_two_processes_at_once_do_the_work_once(tmp_path):
    shelf(tmp_path, count=12)
    with start(tmp_path, hold_at=5) as first:
        until_said(first, "holding")
        with start(tmp_path) as second:
            until_said(second, "waiting for another process")
            first.stdin.write("go on\n")
            first.stdin.flush()
            ends = [until_said(child, "encoded")[-1].split() for child in (first, second)]
    assert [int(count) for _, count, _ in ends] == [12, 0]
    assert len({tokens for _, _, tokens in ends}) == 1


class StopHereError(Exception):
    pass


def stop_after(count):
    seen = set()

    def tell(progress):
        if progress.stage == "encoding" and progress.done:
            seen.add(progress.done)
            if len(seen) > count:
                raise StopHereError

    return tell


@pytest.fixture
def every_file_at_once(monkeypatch):
    """Commit after every file, report after every piece."""
    monkeypatch.setattr(encode, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr("core.data.corpus.progress.Reporter.__init__.__defaults__", (1e9,))


def test_cancelled_it_keeps_what_is_finished_and_leaves_no_thread(tmp_path, every_file_at_once):
    shelf(tmp_path, count=12)
    before = set(threading.enumerate())
    with pytest.raises(StopHereError):
        prepare(config(tmp_path), 1, progress=stop_after(4))
    assert set(threading.enumerate()) <= before
    corpus = prepare(config(tmp_path), 1)
    assert corpus.encoded_files == 12 - 4
    assert read_back(corpus) == whole(tmp_path)


def test_cancelling_while_a_long_file_is_read_takes_effect_at_once(tmp_path, monkeypatch):
    (tmp_path / "long.txt").write_text("word\n" * 20_000)
    blocks = []
    monkeypatch.setattr("core.data.corpus.reading.BLOCK", 1 << 12)
    monkeypatch.setattr("core.data.corpus.progress.Reporter.__init__.__defaults__", (1e9,))
    monkeypatch.setattr("core.data.corpus.workers.REPORT_SECONDS", 0.001)
    see = _Watch.see

    def see_and_wait(watch, block):
        """The first block is read; the next one only when everything should have ended."""
        see(watch, block)
        blocks.append(len(block))
        assert watch._stop.wait(120)

    def tell(progress):
        if progress.stage == "reading" and progress.done:
            raise StopHereError

    monkeypatch.setattr(_Watch, "see", see_and_wait)
    with pytest.raises(StopHereError):
        prepare(config(tmp_path), 1, progress=tell)
    assert blocks == [1 << 12]


@pytest.mark.parametrize("apart", [False, True])
def test_learning_can_be_cancelled(tmp_path, monkeypatch, apart):
    shelf(tmp_path)
    monkeypatch.setattr("core.data.corpus.corpus_tokenizer.AT_ONCE_BYTES", 0 if apart else 10**9)

    def tell(progress):
        if progress.stage == "learning a vocabulary":
            raise StopHereError

    with pytest.raises(StopHereError):
        prepare(config(tmp_path, tokenizer="auto"), 1, progress=tell)


def test_learning_ends_at_once_when_the_one_who_waits_gives_up(monkeypatch):
    """Even while the library works, which can't be interrupted: here, a learner that never ends."""
    endless = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "sys.stdin.buffer.read(); signal.pause()"
    )
    monkeypatch.setattr(learner, "module_command", lambda *_: [sys.executable, "-c", endless])
    calls = []

    def waiting():
        calls.append(1)
        raise StopHereError

    started = []
    original = subprocess.Popen
    monkeypatch.setattr(
        learner.subprocess, "Popen", lambda *a, **k: started.append(original(*a, **k)) or started[0]
    )
    with pytest.raises(StopHereError):
        learner.train_bpe_apart([story(number) for number in range(40)], 8000, waiting)
    assert len(calls) == 1
    assert started[0].returncode == -signal.SIGKILL


def test_learning_apart_gives_the_same_vocabulary():
    texts = [story(number) + "Füße 鯨\n" for number in range(40)]
    apart = learner.train_bpe_apart(texts, 600, lambda: None)
    assert apart.hash == train_bpe(texts, 600).hash


def test_a_learner_that_dies_is_one_sentence(monkeypatch):
    command = [sys.executable, "-c", "import os, sys; sys.stdin.buffer.read(9); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(learner, "module_command", lambda *arguments: command)
    with pytest.raises(UserError, match="exit code -9"):
        learner.train_bpe_apart(["word " * 100_000] * 40, 600, lambda: None)


def test_progress_names_stages_rates_and_the_time_left(tmp_path, every_file_at_once):
    shelf(tmp_path)
    seen: list[Progress] = []
    prepare(config(tmp_path, tokenizer="auto"), 1, progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["listing", "reading", "learning a vocabulary", "encoding"]
    encoding = [progress for progress in seen if progress.stage == "encoding"]
    assert [p.done for p in encoding] == sorted(p.done for p in encoding)
    assert encoding[-1].done == encoding[-1].total == sum(len(text.encode()) for text in whole(tmp_path))
    assert encoding[-1].rate > 0
    assert encoding[-1].seconds_left == 0
    assert encoding[-1].file
    assert "100%" in encoding[-1].text
    assert Progress("encoding", 25, 100, "a.txt", 2e6, 300.0).text == "encoding 25%, 2.0 MB/s, 5 min left"


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path, every_file_at_once, monkeypatch):
    shelf(tmp_path, count=12)
    original = TokenStore._open
    written = []

    class FullDisk:
        """A file on a disk that becomes full in the middle of the sixth text."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            written.append(len(data))
            if len(written) > 11:
                if len(written) == 12:
                    return self.file.write(data[:7])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "_open", lambda store: FullDisk(original(store)))
        with pytest.raises(UserError, match="no room left") as caught:
            prepare(config(tmp_path), 1)
    assert "\n" not in str(caught.value)
    corpus = prepare(config(tmp_path), 1)
    assert corpus.encoded_files == 12 - 5
    assert read_back(corpus) == whole(tmp_path)


def test_a_disk_full_while_noting_what_is_known_is_a_sentence_too(tmp_path, monkeypatch):
    shelf(tmp_path)

    def full(path, data, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("core.data.corpus.cache.write_atomic", full)
    with pytest.raises(UserError, match="no room left"):
        prepare(config(tmp_path), 1)


@pytest.mark.parametrize(
    "damage",
    [
        "torn journal",
        "cut tokens",
        "no tokens",
        "garbage journal",
        "empty journal",
        "garbage facts",
        "no split",
    ],
)
def test_a_damaged_cache_is_mended(tmp_path, damage):
    shelf(tmp_path, count=8)
    first = prepare(config(tmp_path), 1)
    (store,) = first.cache.glob("tokens-*")
    (tokens,) = store.glob("*.bin")
    journal = store / JOURNAL
    expected = first.train.read(0, len(first.train)).copy()
    if damage == "torn journal":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "cut tokens":
        os.truncate(tokens, tokens.stat().st_size - 100)
    elif damage == "no tokens":
        tokens.unlink()
    elif damage == "garbage journal":
        journal.write_bytes(b'{"tokens": 0}\n[1, 2\nnonsense\n')
    elif damage == "empty journal":
        journal.write_bytes(b"")
    elif damage == "garbage facts":
        for path in first.cache.glob("files-*.json"):
            path.write_text('{"book 0.txt": 7, "book 1.txt": [')
    else:
        (first.cache / "split.json").write_text("[")
    again = prepare(config(tmp_path), 1)
    np.testing.assert_array_equal(again.train.read(0, len(again.train)), expected)
    assert read_back(again) == whole(tmp_path)
    if damage == "no split":
        assert any("chosen again" in notice for notice in again.notices)
    if damage in ("cut tokens", "garbage journal", "no tokens"):
        assert any("token cache" in notice for notice in again.notices)
    assert prepare(config(tmp_path), 1).encoded_files == 0


def test_ids_that_were_lost_never_stand_for_another_text(tmp_path):
    """The line of a lost text must not become valid when others have filled its place in the file."""
    shelf(tmp_path, count=8)
    first = prepare(config(tmp_path), 1)
    (store,) = first.cache.glob("tokens-*")
    (tokens,) = store.glob("*.bin")
    lost = (tmp_path / "book 7.txt").read_text()
    os.truncate(tokens, tokens.stat().st_size - 2 * len(lost))
    (tmp_path / "book 7.txt").unlink()
    for number in range(5):
        (tmp_path / f"new {number}.txt").write_text(story(50 + number))
    prepare(config(tmp_path), 1)
    (tmp_path / "book 7.txt").write_text(lost)
    assert read_back(prepare(config(tmp_path), 1)) == whole(tmp_path)


def test_an_error_of_the_one_who_is_told_is_not_taken_for_the_disks(tmp_path):
    shelf(tmp_path)

    def broken(progress):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        prepare(config(tmp_path), 1, progress=broken)


def test_facts_of_an_impossible_shape_are_read_anew(tmp_path):
    shelf(tmp_path)
    cache = prepare(config(tmp_path), 1).cache
    (facts,) = cache.glob("files-*.json")
    facts.write_text(json.dumps({f"book {n}.txt": [n] for n in range(6)}))
    (cache / "split.json").write_text(json.dumps({"1:0.1": {"book 0.txt": 3}}))
    assert read_back(prepare(config(tmp_path), 1)) == whole(tmp_path)


def test_the_lock_is_the_systems_and_waits(tmp_path):
    order = []
    held, waited = threading.Event(), threading.Event()

    def hold():
        with cache_lock(tmp_path, lambda: None):
            held.set()
            waited.wait(120)
            order.append("first")

    def waiting():
        order.append("waiting")
        waited.set()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with cache_lock(tmp_path, waiting):
        order.append("second")
    thread.join()
    assert order[0] == "waiting"
    assert order[-2:] == ["first", "second"]


def test_memory_does_not_grow_with_the_length_of_a_line(tmp_path):
    """A single line many times as long as everything in memory at once (the 2 GB one is in
    benchmarks/corpus.py). Memory grows with the number of cores, so that is fixed.
    """
    (tmp_path / "line.txt").write_text("lorem ipsum dolor sit amet " * 3_000_000)
    code = (
        "import resource, sys\n"
        "from core.config.schema import DataConfig\nfrom core.data.corpus import prepare\n"
        "low = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "corpus = prepare(DataConfig(dataset_dir=sys.argv[1], tokenizer='byte'), 1, threads=2)\n"
        "print(len(corpus.train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - low)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    tokens, kilobytes = map(int, result.stdout.split())
    assert tokens == pytest.approx(0.9 * 81_000_000, rel=1e-3)
    assert kilobytes < 60_000


def test_ten_thousand_files_are_opened_without_reading_them(tmp_path, monkeypatch):
    """Scaled down: the point is that no file is opened (benchmarks/corpus.py measures the time)."""
    for number in range(1000):
        folder = tmp_path / f"{number % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text(story(number, 10))
    monkeypatch.setattr("core.data.corpus.cache._TICK", -(10**12))
    monkeypatch.setattr("core.data.corpus.cache._LONG_TICK", -(10**12))
    first = prepare(config(tmp_path), 1)
    assert len(splits(first)) == 1000
    monkeypatch.setattr("core.data.corpus.reading.open_text", lambda path: pytest.fail("opened"))
    assert len(prepare(DataConfig(dataset_dir=str(tmp_path), tokenizer="byte"), 1).train) == len(first.train)


def test_room_for_the_tokens_is_looked_for_before_anything_is_written(tmp_path, monkeypatch):
    from collections import namedtuple

    from core.data.corpus import cache_folder

    usage = namedtuple("usage", "total used free")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The old man walked home. " * 4000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"0 MB free, and preparing 0 MB of text takes about 0 MB"):
        prepare(DataConfig(dataset_dir=str(folder), tokenizer="byte"), 1)
    assert not any(path.stat().st_size for path in cache_folder(str(folder)).rglob("tokens-*.bin"))
    monkeypatch.undo()
    assert len(prepare(DataConfig(dataset_dir=str(folder), tokenizer="byte"), 1).train) > 1000


def test_more_text_than_expected_never_says_that_time_runs_backward():
    seen = []
    reporter = Reporter(seen.append)
    reporter.begin("reading", 10)
    reporter.count(1000, "a.txt.gz")
    reporter.tell(force=True)
    assert seen[-1].seconds_left == 0
    assert "left" not in seen[-1].text
