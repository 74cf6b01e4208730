"""Files compressed and restored: exactly, with any number of processes, or refused in one sentence."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.compression import compress as module
from core.compression.compress import compress, decompress
from core.compression.plan import Plan, plan
from core.errors import UserError
from tests.compression.checkpoints import write_checkpoint

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"
SMALL = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")),
    st.lists(
        st.sampled_from([b"\r\n", b"\n", b"\r", b"word ", b"\xff", "é".encode(), b"\0"]), max_size=60
    ).map(b"".join),
)
CUTS = st.builds(Plan, st.integers(1, 90), st.integers(1, 5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("compress") / "run", text=TEXT)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_cuts(monkeypatch):
    """Cut files of a few hundred bytes the way large ones are."""
    monkeypatch.setattr(module, "plan", lambda size, **_: Plan(100, 3))
    monkeypatch.setattr(module, "CUT_WITHIN", 8)


def round_trip(folder, checkpoint, data, **options):
    source, small, back = folder / "source", folder / "small.mtz", folder / "back"
    source.write_bytes(data)
    result = compress(source, small, checkpoint, device="cpu", **options)
    assert result.size == len(data)
    assert result.compressed == small.stat().st_size
    decompress(small, back, checkpoint, **{"workers": options.get("workers")})
    assert back.read_bytes() == data
    return small


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=SMALL, cut=CUTS)
def test_any_bytes_come_back_however_they_are_cut(tmp_path, checkpoint, monkeypatch, data, cut):
    monkeypatch.setattr(module, "plan", lambda size, **_: cut)
    monkeypatch.setattr(module, "CUT_WITHIN", 4)
    round_trip(tmp_path, checkpoint, data, workers=1)


def test_text_that_the_model_knows_becomes_smaller(tmp_path, checkpoint):
    small = round_trip(tmp_path, checkpoint, TEXT.encode() * 12, workers=1)
    assert small.stat().st_size < len(TEXT) * 12 / 2


def test_bytes_that_no_model_makes_smaller_are_stored(tmp_path, checkpoint):
    data = random.Random(0).randbytes(100_000)
    small = round_trip(tmp_path, checkpoint, data, workers=1)
    assert small.stat().st_size < len(data) + 400


def test_carriage_returns_cost_nothing(tmp_path, checkpoint, small_cuts):
    text = (TEXT * 6).encode()
    plain = round_trip(tmp_path, checkpoint, text, workers=1).stat().st_size
    dos = round_trip(tmp_path, checkpoint, text.replace(b"\n", b"\r\n"), workers=1).stat().st_size
    assert dos <= plain + 40  # other cuts


def test_processes_and_threads_change_nothing(tmp_path, checkpoint, small_cuts):
    """Compressed by one process and by two, in processes of two threads; restored by one."""
    source = tmp_path / "source"
    source.write_bytes((TEXT * 8).encode())
    torch.set_num_threads(2)
    files = [tmp_path / "one.mtz", tmp_path / "two.mtz"]
    for workers, target in enumerate(files, 1):
        compress(source, target, checkpoint, device="cpu", workers=workers)
    assert files[0].read_bytes() == files[1].read_bytes()
    torch.set_num_threads(2)
    decompress(files[1], tmp_path / "back", checkpoint, workers=1)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def refused(folder, small, checkpoint, words):
    back = folder / "back"
    with pytest.raises(UserError, match=words):
        decompress(small, back, checkpoint, workers=1)
    assert not back.exists()
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []


def test_a_flipped_bit_anywhere_is_refused(tmp_path, checkpoint, small_cuts):
    small = round_trip(tmp_path, checkpoint, TEXT.encode() * 2, workers=1)
    assert small.stat().st_size < 2 * len(TEXT) + 150
    (tmp_path / "back").unlink()
    whole = small.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        small.write_bytes(damaged)
        refused(tmp_path, small, checkpoint, "is damaged|was not written by mamba-tui compress")


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:20], lambda b: b""])
def test_a_shorter_or_longer_file_is_refused(tmp_path, checkpoint, change):
    small = round_trip(tmp_path, checkpoint, TEXT.encode(), workers=1)
    (tmp_path / "back").unlink()
    small.write_bytes(change(small.read_bytes()))
    refused(tmp_path, small, checkpoint, "is damaged|was not written")


def test_another_model_and_another_tokenizer_are_refused(tmp_path, checkpoint):
    from core.data.tokenizer.tokenizer import char_tokenizer

    small = round_trip(tmp_path, checkpoint, TEXT.encode(), workers=1)
    (tmp_path / "back").unlink()
    refused(tmp_path, small, write_checkpoint(tmp_path / "b", seed=1), "another model .*--checkpoint")
    other = write_checkpoint(tmp_path / "c", tokenizer=char_tokenizer("é"))
    refused(tmp_path, small, other, "another tokenizer")


def test_another_arithmetic_is_refused_before_anything_is_decompressed(tmp_path, checkpoint, monkeypatch):
    small = round_trip(tmp_path, checkpoint, TEXT.encode(), workers=1)
    (tmp_path / "back").unlink()
    monkeypatch.setattr(module, "arithmetic_fingerprint", lambda *_: bytes(8))
    refused(tmp_path, small, checkpoint, "whose last digits differ")


def test_arithmetic_that_differs_only_later_never_gives_wrong_bytes(tmp_path, checkpoint, monkeypatch):
    """As if the trial had agreed: the text's own checksum still doesn't."""
    from core.compression import streams

    small = round_trip(tmp_path, checkpoint, (TEXT * 3).encode(), workers=1)
    (tmp_path / "back").unlink()
    exact = streams.frequencies
    monkeypatch.setattr(streams, "frequencies", lambda logits: exact(logits * (1 + 1e-3)))
    refused(tmp_path, small, checkpoint, "arithmetic differs")


def test_a_file_of_another_device_is_refused(tmp_path, checkpoint):
    small = round_trip(tmp_path, checkpoint, TEXT.encode(), workers=1)
    (tmp_path / "back").unlink()
    if torch.cuda.is_available():
        with pytest.raises(UserError, match="accepted: cpu"):
            decompress(small, tmp_path / "back", checkpoint, device="cuda")
    else:
        with pytest.raises(UserError, match="cuda"):
            decompress(small, tmp_path / "back", checkpoint, device="cuda")


def test_a_later_version_is_named(tmp_path, checkpoint):
    import hashlib

    small = round_trip(tmp_path, checkpoint, TEXT.encode(), workers=1)
    (tmp_path / "back").unlink()
    body = bytearray(small.read_bytes()[:-16])
    struct.pack_into("<H", body, 8, 2)
    small.write_bytes(bytes(body) + hashlib.blake2b(body, digest_size=16).digest())
    refused(tmp_path, small, checkpoint, "version 2 .*reads version 1")


def test_an_old_file_stays_where_compressing_fails(tmp_path, checkpoint):
    source, target = tmp_path / "source", tmp_path / "small.mtz"
    source.write_bytes(TEXT.encode() * 50)
    target.write_bytes(b"kept")
    with pytest.raises(UserError, match="nothing was written"):
        compress(source, target, checkpoint, device="cpu", stopped=lambda: True)
    assert target.read_bytes() == b"kept"


def test_progress_goes_up_to_the_size(tmp_path, checkpoint, monkeypatch):
    from core.compression import workers

    monkeypatch.setattr(workers, "REPORT_SECONDS", 0.0)
    told: list[tuple[float, int]] = []
    source = tmp_path / "source"
    source.write_bytes(TEXT.encode())
    compress(source, tmp_path / "s", checkpoint, device="cpu", tell=lambda *values: told.append(values))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (pytest.approx(len(TEXT)), len(TEXT))


@given(st.integers(0, 1 << 40), st.booleans(), st.none() | st.integers(1, 4096))
def test_every_plan_covers_the_file_in_streams_of_some_length(size, cuda, streams):
    cut = plan(size, cuda=cuda, streams=streams)
    assert 1 <= cut.streams <= 4096
    assert 0 < cut.segment <= 1 << 26
