"""Files that mix UTF-8 with a multi-byte encoding: read completely, counted, noted."""

from __future__ import annotations

import threading

import pytest

from core.data.corpus.encodings import make_decoder
from core.data.corpus.listing import list_texts
from core.data.corpus.reading import ReadingOptions
from core.data.corpus.survey import survey

CHINESE = "他走在回家的路上，雨一直下个不停。老人说，今天的天气很冷。\n"
TAIWAN = "他走在回家的路上，雨一直下個不停。老人說，今天的天氣很冷。\n"
JAPANESE = "老人は家へ歩いて帰り、雨が降った。とても寒い日でした。\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(CHINESE, "gb18030"), (TAIWAN, "big5"), (JAPANESE, "shift_jis"), (JAPANESE, "euc_jp")],
)
def test_half_utf_8_half_eastern(tmp_path, text, encoding):
    stray = (text * 100).encode(encoding)
    (tmp_path / "a.txt").write_bytes((text * 100).encode() + stray)
    [source] = list_texts(str(tmp_path), False).sources
    facts = survey(source, ReadingOptions(None, True, False, False), lambda size: None, threading.Event())
    assert facts.bytes == len((text * 200).encode())
    count = sum(byte > 127 for byte in stray)
    assert any(f"{count:,} bytes that were read as" in note for note in facts.notes)
    assert any("the first in line 101" in note for note in facts.notes)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_lines_are_decoded_whatever_the_blocks_are(size):
    data = CHINESE.encode() + CHINESE.encode("gb18030") + b"plain\r\n" + CHINESE.encode()
    decoder = make_decoder("utf-8+gb18030")
    pieces = [decoder.decode(data[at : at + size]) for at in range(0, len(data), size)]
    assert "".join(pieces) + decoder.decode(b"", True) == CHINESE * 2 + "plain\r\n" + CHINESE


EMOJI = b"Hello \xed\xa0\xbd\xed\xb8\x80 world\n"  # U+1F600 as two surrogates


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (EMOJI, "UTF-8, except for 1 surrogate pair, joined; the first in line 1"),
        (EMOJI * 20, "UTF-8, except for 20 surrogate pairs, joined; the first in line 1"),
        (EMOJI * 20 + b"Zo\xeb\n", "1 byte that was read as Windows-1252 and 20 surrogate pairs, joined"),
    ],
)
def test_nothing_but_split_emoji(tmp_path, content, note):
    """Without another character that is UTF-8 beside them they look like many an encoding."""
    (tmp_path / "a.txt").write_bytes(content)
    [source] = list_texts(str(tmp_path), False).sources
    facts = survey(source, ReadingOptions(None, True, False, False), lambda size: None, threading.Event())
    assert any(note in said for said in facts.notes), facts.notes
