import gzip
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.corpus import listing as listing_module
from core.data.corpus import reading
from core.data.corpus.document_marks import MARKS, MarkCounter, cut_at_marks
from core.data.corpus.encodings import check_declared
from core.data.corpus.gutenberg import LICENSE_LIMIT, GutenbergCutter
from core.data.corpus.listing import list_texts
from core.data.corpus.reading import ReadingOptions, Tail, clean_text, pieces, seekable_text
from core.data.corpus.survey import survey
from core.data.tokenizer.vocabulary import train_bpe
from core.errors import UserError

GERMAN = "Die Bäume wüßten's längst: Öl, Größe und übermäßige Mühe für schöne Füße.\n" * 30
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n" * 30
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 30


def read(path, **options):
    """(facts, text) of one file."""
    (source,) = list_texts(str(path)).sources
    chosen = ReadingOptions(**options)
    facts = survey(source, chosen, lambda size: None, threading.Event())
    if facts.problem:
        return facts, ""
    return facts, "".join(text for _, text in clean_text(source, facts.encoding, chosen))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every text crosses many of their borders."""
    monkeypatch.setattr(reading, "BLOCK", 7)


@pytest.mark.parametrize(
    ("encoding", "reported", "note"),
    [
        ("utf-8", "utf-8", ""),
        ("utf-8-sig", "utf-8-sig", ""),
        ("utf-16", "utf-16", ""),
        ("utf-32", "utf-32", ""),
        ("utf-16-le", "utf-16-le", "no BOM"),
        ("utf-16-be", "utf-16-be", "no BOM"),
        ("latin-1", "cp1252", "guessed"),
        ("cp1252", "cp1252", "guessed"),
    ],
)
def test_western_encodings_are_found_and_guesses_reported(tmp_path, small_blocks, encoding, reported, note):
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode(encoding))
    facts, text = read(path)
    assert text == GERMAN
    assert facts.encoding == reported
    assert facts.characters == len(GERMAN)
    assert facts.bytes == len(GERMAN.encode())
    assert note in " ".join(facts.notes)
    assert bool(note) == bool(facts.notes)


SENTENCES = {
    "Die Bäume wüßten längst: Öl, Größe und übermäßige Mühe für schöne Füße.\n": "cp1252 latin-1 cp437",
    "« Ça, très tôt ! » Où était-ce, déjà ? Je m’endors à peine, et l’été…\n": "cp1252",
    "En un lugar de la Mancha; ¿qué más? El niño comió jamón. ¡Há mucho!\n": "cp1252 latin-1",
    "Det var en gång en flicka som hette Åsa. Hon älskade att äta blåbär.\n": "cp1252 latin-1",
    "“It is a truth,” he said, “that a man’s fortune — however small — is naïve.”\n": "cp1252 mac-roman",
    "Litwo! Ile cię trzeba cenić, ten tylko się dowie, Kto cię stracił. Dziś piękność.\n": "cp1250 iso8859-2",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Sešli na náměstí a čekali.\n": "cp1250 iso8859-2",
    "Árvíztűrő tükörfúrógép. Az öreg király nagyon szerette a gyönyörű erdőt.\n": "cp1250 iso8859-2",
    "Bir gün küçük çocuk bahçede oynuyordu. Güneş çok parlaktı, şimdi.\n": "cp1254 iso8859-9",
    "Μια φορά κι έναν καιρό ήταν ένας βασιλιάς που είχε τρεις γιους.\n": "cp1253 iso8859-7",
    "Все счастливые семьи похожи друг на друга, каждая по-своему.\n": "cp1251 koi8-r iso8859-5",
    "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו וחשך על פני תהום\n": "cp1255",
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。\n": "gb18030 gbk",
    "話說天下大勢，分久必合，合久必分。周末七國分爭，並入於秦。\n": "big5",
    "옛날 옛적에 한 나무꾼이 살았습니다. 그는 매일 산에 올라가 나무를 베었습니다.\n": "euc-kr cp949",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n": "shift_jis euc_jp",
}


@pytest.mark.parametrize(
    ("text", "encoding"), [(text, name) for text, names in SENTENCES.items() for name in names.split()]
)
def test_legacy_encodings_are_guessed_right_and_said_to_be_guessed(tmp_path, text, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes((text * 40).encode(encoding))
    facts, clean = read(path)
    assert clean == text * 40
    assert "guessed" in facts.notes[0]


def test_stray_bytes_in_utf8_cost_no_other_character(tmp_path, small_blocks):
    """One pasted sentence must not turn a whole library into another encoding."""
    path = tmp_path / "a.txt"
    stray = "“Füße”, said the caf\xe9".encode("cp1252") + b"\x81."
    path.write_bytes(RUSSIAN.encode() + stray + JAPANESE.encode())
    facts, text = read(path)
    assert text == RUSSIAN + "“Füße”, said the café\x81." + JAPANESE
    assert facts.notes == ["UTF-8, except for 6 bytes that were read as Windows-1252; the first in line 31"]


@pytest.mark.parametrize("first", ["utf-8", "cp1251"])
def test_a_file_half_in_another_encoding_is_read_in_both(tmp_path, small_blocks, first):
    path = tmp_path / "a.txt"
    half, other = RUSSIAN * 3, RUSSIAN.replace("семьи", "люди") * 3
    second = {"utf-8": "cp1251", "cp1251": "utf-8"}[first]
    path.write_bytes(half.encode(first) + other.encode(second))
    facts, text = read(path)
    assert text == half + other
    line = 1 if first == "cp1251" else half.count("\n") + 1
    count = sum(not char.isascii() for char in (half if first == "cp1251" else other))
    assert facts.notes == [
        f"UTF-8, except for {count:,} bytes that were read as cp1251 (guessed); the first in line {line:,}"
    ]


@pytest.mark.parametrize("block", [5, 6, 7, 8, 9, 10, 1000])
def test_halves_of_a_character_are_joined(tmp_path, monkeypatch, block):
    """Emoji as written by programs that use UTF-16 internally: two surrogates of three bytes each."""
    monkeypatch.setattr(reading, "BLOCK", block)
    path = tmp_path / "a.txt"
    text = "Größe, Mühe und Füße\n so 😀 and 𝄞\n" * 5
    pairs = "".join(
        char if char <= "\uffff" else "".join(map(chr, memoryview(char.encode("utf-16-le")).cast("H")))
        for char in text
    )
    path.write_bytes(pairs.encode("utf-8", "surrogatepass"))
    facts, clean = read(path)
    assert clean == text
    assert facts.notes == ["UTF-8, except for 10 surrogate pairs, joined; the first in line 2"]


CHINESE = "话说天下大势，分久必合，合久必分。\n周末七国分争，并入于秦。\n" * 40
HEBREW = "בראשית ברא אלהים את השמים ואת הארץ\n" * 40


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [RUSSIAN, CHINESE, JAPANESE, HEBREW, RUSSIAN[:60]])
def test_utf16_of_other_alphabets_is_known_without_a_mark(tmp_path, small_blocks, encoding, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    facts, clean = read(path)
    assert (facts.problem, clean) == ("", text)
    assert facts.encoding == encoding
    assert "guessed" in facts.notes[0]


def test_ascii_with_a_few_zeros_is_not_utf16(tmp_path):
    path = tmp_path / "a.txt"
    text = "plain words and a zero\0 here and then\n" * 50
    path.write_bytes(text.encode())
    assert read(path)[1] == text


def test_binary_names_the_setting(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(256)) * 20)
    assert "set `encoding`" in read(path)[0].problem


def test_the_guess_is_made_from_what_is_not_ascii(tmp_path):
    """A few Russian lines in a long English file are still Russian."""
    path = tmp_path / "a.txt"
    text = ("An English sentence that says nothing much.\n" * 400 + RUSSIAN.split("\n")[0] + "\n") * 12
    path.write_bytes(text.encode("cp1251"))
    facts, clean = read(path)
    assert clean == text
    assert facts.encoding == "cp1251"


def test_marks_in_the_middle_are_noted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one two\n".encode("utf-8-sig") * 3)
    facts, text = read(path)
    assert text == "one two\n\ufeffone two\n\ufeffone two\n"
    assert facts.notes == ["2 byte order marks inside the text, as where files were joined; kept"]


def test_a_declared_encoding_is_used_for_what_is_not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode("mac-roman"))
    facts, text = read(path, encoding=check_declared("mac-roman"))
    assert text == GERMAN
    assert "as declared" in facts.notes[0]
    path.write_bytes(GERMAN.encode("utf-8"))
    assert read(path, encoding="mac-roman")[1] == GERMAN


def test_a_declared_utf16_is_believed_without_a_mark(tmp_path):
    """Chinese in UTF-16 has neither zeros nor few control bytes: only a declaration helps."""
    path = tmp_path / "a.txt"
    text = "".join(chr(0x4E00 + 256 * (n % 60) + n % 31) for n in range(2000))
    path.write_bytes(text.encode("utf-16-le"))
    assert read(path, encoding="utf-16-le")[1] == text
    assert "binary" in read(path)[0].problem
    path.write_bytes(text.encode("utf-16-le") + b"\x00")
    assert "UTF-16-LE that was declared" in read(path, encoding="utf-16-le")[0].problem


def test_a_declared_encoding_that_does_not_fit_is_a_problem_not_a_guess(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(GERMAN.encode("latin-1"))
    assert "neither UTF-8 nor ascii" in read(path, encoding="ascii")[0].problem


def test_an_unknown_encoding_is_refused():
    with pytest.raises(UserError, match='"klingon"'):
        check_declared("klingon")
    with pytest.raises(UserError, match="not known"):
        check_declared("base64")
    assert check_declared("auto") is None


def test_one_bad_byte_far_into_a_file_is_not_silently_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain words\n" * 40_000 + "caf\xe9 society\n".encode("latin-1") + b"and on\n" * 10)
    facts, text = read(path)
    assert "café society" in text
    assert "guessed" in facts.notes[0]
    assert facts.encoding == "cp1252"


def test_a_mark_that_lies_is_a_problem(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("word".encode("utf-16") + b"\x00")
    assert "UTF-16 that its BOM says" in read(path)[0].problem


@given(text=st.text(alphabet="ab\r\n", max_size=60))
def test_line_ends_become_lf_wherever_blocks_end(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(b"x" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", 3)
        assert read(path)[1] == "x" + text.replace("\r\n", "\n").replace("\r", "\n")


def test_gzip_is_read_and_damaged_gzip_reported(tmp_path):
    path = tmp_path / "a.txt.gz"
    data = gzip.compress(GERMAN.encode())
    path.write_bytes(data)
    assert read(path)[1] == GERMAN
    path.write_bytes(data[:-20])
    assert "damaged gzip" in read(path)[0].problem
    path.write_bytes(b"no gzip at all")
    assert "damaged gzip" in read(path)[0].problem


def test_a_gzip_file_that_unpacks_to_more_than_any_text_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LEAST_UNPACKED", 1 << 16)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * 40_000_000))
    facts, _ = read(path)
    assert "unpacks to more than 100 times its size" in facts.problem
    path.write_bytes(gzip.compress(b"a" * 60_000))  # small enough to be harmless
    assert read(path)[0].problem == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "PNG image"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF document"),
        (bytes(range(256)) * 20, "binary"),
        (b"\x00\x01\x02\x03" * 100, "binary"),
        (b"\xef\xbb\xbf", "contains no text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, data, says):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert says in read(path)[0].problem


def test_control_characters_stay_and_are_counted(tmp_path):
    path = tmp_path / "a.txt"
    text = "one\x00two\x1b[31m\tthree\x7f\n" + "words " * 100
    path.write_text(text)
    facts, clean = read(path)
    assert clean == text
    assert facts.notes == ["3 control characters kept (U+0000, U+001B, U+007F)"]


def test_the_longest_line_is_measured_across_blocks(tmp_path, small_blocks):
    path = tmp_path / "a.txt"
    path.write_text("ab\n" + "x" * 50 + "\nabc\n" + "y" * 20)
    assert read(path)[0].longest_line == 50


# --- Project Gutenberg ---------------------------------------------------------------------------

BODY = "Chapter I.\n\nIt was a dark night; the license of poets was exhausted.\n"
HEADER = "The Project Gutenberg EBook of Something\n\nTitle: Something\n\n"
LICENSE = "\n\nUpdated editions will replace the previous one\n*** START: FULL LICENSE ***\nmany pages\n" * 3
FORMS = {
    "this": (
        "*** START OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***\n\n",
        "*** END OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***",
    ),
    "the, tight": (
        "***START OF THE PROJECT GUTENBERG EBOOK SOMETHING***\n\n\n",
        "***END OF THE PROJECT GUTENBERG EBOOK SOMETHING***",
    ),
    "with a line before": (
        "*** START OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***\n",
        "End of the Project Gutenberg EBook of Something, by Someone\n\n"
        "*** END OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***",
    ),
    "with a curly line before": (
        "*** START OF THIS PROJECT GUTENBERG EBOOK SOMETHING ***\n",
        "End of Project Gutenberg’s Something, by Someone\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***",
    ),
    "title on two lines": (
        "*** START OF THIS PROJECT GUTENBERG EBOOK SOMETHING VERY\nLONG INDEED ***\n\n",
        "*** END OF THIS PROJECT GUTENBERG EBOOK SOMETHING VERY\nLONG INDEED ***",
    ),
    "old": (
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n",
        "End of Project Gutenberg Etext of Something",
    ),
}


def cut(text, size=10**9):
    cutter = GutenbergCutter()
    parts = [part for low in range(0, len(text), size) for part in cutter.feed(text[low : low + size])]
    return [*parts, *cutter.finish()], cutter


def documents(parts):
    documents = []
    for fresh, text in parts:
        if fresh:
            documents.append("")
        documents[-1] += text
    return documents


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 13, 10**9])
def test_header_and_license_are_cut(form, size):
    start, end = FORMS[form]
    parts, cutter = cut(HEADER + start + BODY + "\n\n" + end + LICENSE, size)
    assert documents(parts) == [BODY]
    assert "license removed" in cutter.notes[0]


def test_a_text_without_markers_is_left_alone():
    parts, cutter = cut(BODY * 5000, 1000)
    assert documents(parts) == [BODY * 5000]
    assert cutter.notes == []


def test_several_books_in_a_file_are_several_documents():
    start, end = FORMS["this"]
    one = HEADER + start + BODY + end + LICENSE
    parts, cutter = cut(one * 3, 50)
    assert documents(parts) == [BODY] * 3
    assert "3 books" in cutter.notes[0]


def test_a_marker_with_much_text_behind_it_is_part_of_the_text():
    start, end = FORMS["this"]
    body = BODY + end + "\n" + "and the story goes on\n" * (LICENSE_LIMIT // 20)
    parts, _ = cut(HEADER + start + body, 5000)
    assert documents(parts) == [body]


@given(size=st.integers(1, 400), filler=st.integers(0, 30))
def test_where_the_pieces_end_does_not_matter(size, filler):
    start, end = FORMS["with a line before"]
    text = HEADER + start + BODY * filler + "x\n" + end + LICENSE
    assert documents(cut(text, size)[0]) == [BODY * filler + "x\n"]


# --- document marks ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 5, 13, 16, 1000])
@pytest.mark.parametrize("options", [{}, {"strip_gutenberg": False}])
def test_marks_begin_documents_where_that_is_asked_for(tmp_path, monkeypatch, block, options):
    monkeypatch.setattr(reading, "BLOCK", block)
    path = tmp_path / "a.txt"
    parts = ["A story\n\nof two paragraphs", "another one", "< a third |>\nnearly <|endoftex"]
    path.write_text("<|startoftext|>" + "<|endoftext|>\n<|startoftext|>\n".join(parts) + "\n<|endoftext|>")
    facts, text = read(path, **options)
    assert text == path.read_text()
    assert facts.documents == 1
    assert "spells a document mark such as <|endoftext|> 6 times" in facts.notes[0]
    chosen = ReadingOptions(cut_at_marks=True, **options)
    (file,) = list_texts(str(path)).sources
    facts = survey(file, chosen, lambda size: None, threading.Event())
    assert documents(clean_text(file, facts.encoding, chosen)) == parts
    assert (facts.documents, facts.notes) == (3, [])
    assert facts.characters == sum(map(len, parts))


@given(st.lists(st.sampled_from(["a", "\n", *MARKS, "<|", "|>", " "]), max_size=30), st.integers(1, 20))
def test_marks_are_cut_wherever_stretches_end(words, size):
    text = "".join(words)
    whole = list(cut_at_marks([(True, text)]))
    cut = [(low == 0, text[low : low + size]) for low in range(0, len(text), size)]
    assert documents(cut_at_marks(cut)) == documents(whole)
    assert not any(mark in part for part in documents(whole) for mark in MARKS)
    counter = MarkCounter()
    for _, part in cut:
        counter.see(part)
    assert counter.count == sum(map(text.count, MARKS))


# --- unwrapping, pieces, slices ----------------------------------------------------------------------


def test_unwrapping_joins_paragraphs_and_leaves_verse_and_lists(tmp_path):
    prose = (
        "It is a truth universally acknowledged, that a single man\nin possession of a good fortune, must\n"
    )
    verse = "\nTyger Tyger, burning bright,\nIn the forests of the night;\n"
    listed = "\nA long line that introduces a list of several things to come:\n  one\n  two\n"
    path = tmp_path / "a.txt"
    path.write_text(prose + verse + listed)
    assert read(path, unwrap_lines=True)[1] == prose.replace("man\nin", "man in") + verse + listed
    assert read(path)[1] == prose + verse + listed


def test_unwrapping_a_line_beyond_all_measure_holds_little_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 10_000)
    path = tmp_path / "a.txt"
    path.write_text("word " * 20_000)
    (source,) = list_texts(str(path)).sources
    stretches = [text for _, text in clean_text(source, "utf-8", ReadingOptions(None, False, True))]
    assert "".join(stretches) == "word " * 20_000
    assert max(map(len, stretches)) <= 20_000


@given(st.integers(1, 300), st.integers(5, 60), st.text(alphabet="ab \n", max_size=400))
def test_pieces_are_the_text_and_encode_as_it_does(piece, block, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        patch.setattr(reading, "_CUT_WINDOW", 8)
        stretches = [(low == 0, text[low : low + block]) for low in range(0, len(text), block)]
        parts = list(pieces(stretches))
    assert "".join(part.text for part in parts) == text
    assert [part.opens for part in parts] == [index == 0 for index in range(len(parts))]


def test_pieces_of_ordinary_text_give_the_ids_of_the_whole(monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 100)
    text = "\n".join(f"It's {n} o'clock,  said the cat -- or was it {n * n}?\t(No!)\n" for n in range(200))
    tokenizer = train_bpe([text], 400)
    cut = [part.text for part in pieces([(True, text)])]
    assert len(cut) > 50
    assert [i for part in cut for i in tokenizer.encode(part).tolist()] == tokenizer.encode(text).tolist()


@given(st.text(alphabet="ab\n", min_size=2, max_size=300), st.integers(1, 50), st.floats(0.01, 0.5))
def test_a_tail_is_never_empty_and_begins_where_it_should(text, block, fraction):
    tail = Tail.of(len(text), fraction)
    stretches = [(low == 0, text[low : low + block]) for low in range(0, len(text), block)]
    parts = list(pieces(stretches, tail))
    head = "".join(part.text for part in parts if not part.tail)
    rest = "".join(part.text for part in parts if part.tail)
    assert head + rest == text
    assert head
    assert rest
    assert tail.target <= len(head) <= max(tail.limit, tail.target)
    assert next(part.opens for part in parts if part.tail)


def test_slices_for_learning_stay_before_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("é" * 300_000 + "Z" * 100_000)
    (source,) = list_texts(str(path)).sources
    slices = list(seekable_text(source, "utf-8", 300_000, 200_000))
    assert len(slices) == 3
    assert set("".join(slices)) == {"é"}
    assert seekable_text(source, "utf-16", 300_000, 200_000) is None


# --- listing -------------------------------------------------------------------------------------------


def test_subfolders_names_and_suffixes(tmp_path):
    for name in ("b.txt", "a/z.TXT", "a/b/c d.txt.gz", "ü 鯨.txt", "notes.md", ".hidden.txt", ".git/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    listing = list_texts(str(tmp_path))
    assert [source.name for source in listing.sources] == ["a/b/c d.txt.gz", "a/z.TXT", "b.txt", "ü 鯨.txt"]
    assert listing.skipped == {".hidden.txt": "hidden file, not read"}
    assert listing.others == 1


def test_a_name_that_is_no_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        with open(path, "wb") as file:
            file.write(b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (source,) = list_texts(str(tmp_path)).sources
    assert read(source.path)[1] == "text"


def test_what_is_no_file_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the whole path may be longer than a socket's name can be
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "inside.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        listing = list_texts(str(tmp_path))
    assert [source.name for source in listing.sources] == ["folder.txt/inside.txt"]
    assert listing.skipped == {
        "folder.txt": "is a folder; the texts in it are read",
        "pipe.txt": "is a named pipe, not a text file",
        "nowhere.txt": "is a link that leads nowhere",
        "s.txt": "is a socket, not a text file",
    }


def test_links_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("x")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a" / "one.txt")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    listing = list_texts(str(tmp_path))
    assert len(listing.sources) == 1
    assert any("same file" in reason for reason in listing.skipped.values())
    assert any("which is already read" in reason for reason in listing.skipped.values())


def test_a_file_system_without_numbers_for_files_has_no_copies(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("y")
    original = os.stat

    def unnumbered(path, **options):
        values = list(original(path, **options))
        return os.stat_result([values[0], 0, *values[2:]])

    monkeypatch.setattr("core.data.corpus.listing.os.stat", unnumbered)
    assert len(list_texts(str(tmp_path)).sources) == 2


def test_a_link_says_where_it_leads(tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere")
    (source,) = list_texts(str(tmp_path)).sources
    assert source.note == f"link to {tmp_path / 'elsewhere'}"


def test_links_that_lead_out_of_the_folder_are_not_followed_unless_that_is_allowed(tmp_path):
    shelf, private = tmp_path / "shelf", tmp_path / "private"
    shelf.mkdir()
    (private / "deep").mkdir(parents=True)
    (private / "deep" / "letters.txt").write_text("secret")
    (private / "notes").write_text("secret")
    (shelf / "mine.txt").write_text("x")
    (shelf / "notes.txt").symlink_to(private / "notes")
    (shelf / "folder").symlink_to(private / "deep")
    (shelf / "up").symlink_to("..")
    (shelf / "chain.txt").symlink_to(shelf / "notes.txt")
    (tmp_path / "shelf-2").mkdir()  # a name that begins alike is not inside
    (tmp_path / "shelf-2" / "other.txt").write_text("secret")
    (shelf / "beside").symlink_to(tmp_path / "shelf-2")
    listing = list_texts(str(shelf))
    assert [file.name for file in listing.sources] == ["mine.txt"]
    assert sorted(listing.skipped) == ["beside", "chain.txt", "folder", "notes.txt", "up"]
    for name, reason in listing.skipped.items():
        assert "is a link that leads out of the dataset folder, to" in reason, name
        assert "outside_links = true" in reason
    allowed = list_texts(str(shelf), outside_links=True)
    assert "notes.txt" in {*[file.name for file in allowed.sources], *allowed.skipped}
    assert any(file.name == "folder/letters.txt" for file in allowed.sources)


@pytest.mark.parametrize("target", ["/", "..", "../..", "../../shelves"])
def test_a_link_up_to_a_folder_that_holds_the_dataset_is_never_followed(tmp_path, target):
    shelf, beside = tmp_path / "shelves" / "mine", tmp_path / "other"
    shelf.mkdir(parents=True)
    beside.mkdir()
    (shelf / "a.txt").write_text("x")
    (tmp_path / "shelves" / "b.txt").write_text("y")
    (beside / "c.txt").write_text("z")
    (shelf / "up.txt").symlink_to(target)
    (shelf / "beside").symlink_to(beside)
    (beside / "root").symlink_to("/")  # reached by a link that is allowed
    listing = list_texts(str(shelf), outside_links=True)
    assert [file.name for file in listing.sources] == ["a.txt", "beside/c.txt"]
    assert sorted(listing.skipped) == ["beside/root", "up.txt"]
    assert all("contains the dataset folder itself" in reason for reason in listing.skipped.values())


def test_a_huge_folder_behind_a_link_is_looked_through_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(listing_module, "MOST_OUTSIDE", 10)
    for number in range(8):
        folder = tmp_path / "elsewhere" / str(number)
        folder.mkdir(parents=True)
        for name in "abc":
            (folder / f"{name}.txt").write_text(name)
    own = tmp_path / "texts" / "own"
    own.mkdir(parents=True)
    for number in range(20):
        (own / f"{number}.txt").write_text("mine")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    listing = list_texts(str(tmp_path / "texts"), outside_links=True)
    names = [source.name for source in listing.sources]
    assert sum(name.startswith("own/") for name in names) == 20
    assert 0 < sum(name.startswith("linked/") for name in names) < 10
    assert "more than 10 files and folders" in listing.skipped["linked"]


def test_a_dataset_folder_that_is_a_link_is_one_like_others(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "texts" / "b.txt").symlink_to("a.txt")
    (tmp_path / "dataset").symlink_to(tmp_path / "texts")
    listing = list_texts(str(tmp_path / "dataset"))
    assert [file.name for file in listing.sources] == ["a.txt"]
    assert "same file" in listing.skipped["b.txt"]


@pytest.mark.parametrize("name", ["loop.txt", "loop"])
def test_an_entry_that_cannot_be_looked_at_is_skipped_with_a_sentence(tmp_path, name):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / name).symlink_to(name)
    listing = list_texts(str(tmp_path))
    assert [file.name for file in listing.sources] == ["a.txt"]
    assert name in listing.skipped


def test_any_error_of_any_entry_is_that_entrys_alone(tmp_path, monkeypatch):
    for name in ("a.txt", "b.txt", "c"):
        (tmp_path / name).write_text("x")
    real = os.scandir

    class Faulty:
        def __init__(self, entry):
            self.name, self.path = entry.name, entry.path

        def is_symlink(self):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(
        "core.data.corpus.listing.os.scandir",
        lambda path: [entry if entry.name == "a.txt" else Faulty(entry) for entry in real(path)],
    )
    listing = list_texts(str(tmp_path))
    assert [file.name for file in listing.sources] == ["a.txt"]
    assert listing.skipped == dict.fromkeys(("b.txt", "c"), "cannot be read: Input/output error")


def test_a_file_without_permission_is_reported(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert read(path)[0].problem == "cannot be read: Permission denied"


def test_a_file_that_cannot_be_opened_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "open_text", refuse)
    facts = read(path)[0]
    assert facts.problem == "cannot be read: Permission denied"
    assert facts.passing  # it is tried again the next time, though nothing about the file changes
