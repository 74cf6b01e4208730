"""Foreign text: nothing in it may reach the terminal as a command, nor Textual as markup."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mamba_tui.widgets.safe_text import BIDI, clip, pad, safe, visible

HOSTILE = [
    "[@click=app.quit]x[/]",
    "[/x]",
    "a[/",
    "[type=x, v={'a[0]'}]",
    "\x1b]0;title\x07\x1b[2J\x1b]52;c;ZXZpbA==\x07",
    "\x9b31mC1\x90",
    "\u202eright to left\u2066isolate",
    "\ud800lone surrogate",
    "e" + "\u0301" * 50,
    "zero\u200bwidth\u200djoin\ufeff",
    "line\u2028separator\x85next",
    "tab\tnew\nline\rreturn",
    "🦜 emoji ❤\ufe0f and 漢字",
    "x" * 10_000,
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_is_never_parsed(text):
    assert safe(text).plain == visible(text)
    assert safe(text).spans == []


@given(st.text(st.characters(exclude_categories=[]), max_size=200), st.booleans())
def test_no_character_can_command_the_terminal(text, lines):
    shown = visible(text, lines=lines)
    for character in shown:
        if lines and character == "\n":
            continue
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(character)
        assert character not in BIDI
    shown.encode("utf-8")
    assert ("\n" in shown) == (lines and "\n" in text)


@given(st.text(max_size=200))
def test_harmless_text_is_left_as_it_is(text):
    plain = "".join(c for c in text if c.isalnum() and not unicodedata.combining(c) and c.isprintable())
    plain = plain.replace("\u3164", "").replace("\uffa0", "").replace("\u115f", "").replace("\u1160", "")
    assert visible(plain) == plain


def test_a_tower_of_marks_is_cut():
    assert visible("e" + "\u0301" * 50) == "e" + "\u0301" * 3


def test_control_characters_have_glyphs_of_their_own():
    assert visible("\x1b[0m\x07\x7f") == "␛[0m␇␡"
    assert visible("a\r\nb\nc", lines=True) == "a\nb\nc"
    assert visible("a\nb") == "a␊b"


@given(st.text(max_size=60), st.integers(0, 40), st.booleans())
def test_padding_is_exact(text, cells, right):
    assert cell_len(pad(text, cells, right=right)) == cells
    assert cell_len(clip(text, cells)) <= cells


def test_clipping_says_that_something_is_missing():
    assert clip("a long name", 6) == "a lon…"
    assert clip("漢字漢字", 5) == "漢字…"
    assert clip("short", 6) == "short"


def test_a_very_long_name_costs_little():
    text = visible("\u202e" * 1_000_000)
    assert len(text) == 1_000_000
    assert len(clip("\u202e" * 1_000_000, 20)) == 20
