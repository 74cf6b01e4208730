"""The small widgets: line editor, wrapping of tokens, rows, bars, numbers, hourglass."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from textual.app import App, ComposeResult

from core.config.schema import MAMBA
from mamba_tui import keys
from mamba_tui.widgets import hourglass, numbers
from mamba_tui.widgets.line_edit import LineEdit
from mamba_tui.widgets.token_view import MOST_TOKENS, Token, TokenView, Wrapper


def typed(edit, *names):
    for name in names:
        edit.key(name, name if len(name) == 1 else None)
    return edit.text


def test_a_line_is_edited():
    edit = LineEdit("abc")
    assert typed(edit, "d", "left", "left", "x") == "abxcd"
    assert typed(edit, "backspace", "delete") == "abd"
    assert typed(edit, "home", "1", "end", "2") == "1abd2"
    assert typed(edit, "home", "right", "ctrl+u") == "abd2"
    assert not edit.key("f1", None)
    edit.insert("two\nlines")
    assert "\n" not in edit.text


@example("0⺀", 1, 1)
@example("漢漢漢漢", 4, 3)
@given(st.text(max_size=50), st.integers(1, 30), st.integers(0, 60))
def test_an_edited_line_fills_its_cells_and_shows_its_cursor(text, width, cursor):
    edit = LineEdit(text)
    edit.cursor = min(cursor, len(text))
    segments = edit.segments(width, Style.null())
    assert any(segment.style.reverse for segment in segments)
    cells = sum(cell_len(segment.text) for segment in segments)
    # A wide character under the cursor needs one cell more than a width of one.
    assert cells == width or (width == 1 and cells == 2)


WORDS = st.lists(st.text(st.sampled_from("ab 漢\n🦜"), max_size=8), max_size=40)


@settings(deadline=None)
@given(WORDS, st.integers(2, 20))
def test_wrapping_loses_no_letter_and_overflows_no_line(tokens, width):
    wrapper = Wrapper(width)
    for index, text in enumerate(tokens):
        wrapper.add(index, text)
    for line in wrapper.lines:
        assert sum(cell_len(text) for _, text in line) <= width
    shown = "".join(text for line in wrapper.lines for _, text in line)
    assert "".join(shown.split()) == "".join("".join(tokens).split())
    owners = [number for line in wrapper.lines for number, _ in line]
    assert owners == sorted(owners)


@settings(deadline=None)
@given(WORDS, st.integers(2, 20))
def test_wrapping_piece_by_piece_equals_wrapping_at_once(tokens, width):
    whole, pieces = Wrapper(width), Wrapper(width)
    text = "".join(tokens)
    whole.add(0, text)
    for index, character in enumerate(text):
        pieces.add(index, character)

    def plain(wrapper):
        return ["".join(text for _, text in line).rstrip() for line in wrapper.lines]

    assert plain(whole) == plain(pieces)


def test_words_are_not_cut_where_they_fit():
    wrapper = Wrapper(10)
    for index, text in enumerate(["one ", "tw", "o th", "ree", " four"]):
        wrapper.add(index, text)
    assert ["".join(text for _, text in line).strip() for line in wrapper.lines] == ["one two", "three four"]


class TokenApp(App[None]):
    def compose(self) -> ComposeResult:
        yield TokenView(id="view")


def words(count, start=0):
    return [Token(f"word{index} ", 0.5, generation=1, index=index) for index in range(start, start + count)]


async def test_the_view_follows_until_it_is_read():
    async with TokenApp().run_test(size=(40, 10)) as pilot:
        view = pilot.app.query_one(TokenView)
        view.append(words(500))
        assert view.top == len(view.wrapper.lines) - 10
        view.focus()
        await pilot.press("up")
        top = view.top
        view.append(words(100, 500))
        assert view.top == top, "who reads back is left alone"
        await pilot.press("end")
        assert view.top == len(view.wrapper.lines) - 10
        await pilot.press("home")
        assert view.cursor == 0
        assert view.top == 0
        await pilot.press("down", "right")
        assert view.line_of(view.cursor) == 1


async def test_the_transcript_is_capped():
    async with TokenApp().run_test(size=(40, 10)) as pilot:
        view = pilot.app.query_one(TokenView)
        for start in range(0, MOST_TOKENS + 4000, 4000):
            view.append(words(4000, start))
        assert len(view.tokens) <= MOST_TOKENS
        assert view.tokens[-1].text == f"word{MOST_TOKENS + 3999} "
        assert view.wrapper.lines[-1][-1][0] == len(view.tokens) - 1


async def test_appending_touches_only_the_end():
    async with TokenApp().run_test(size=(40, 10)) as pilot:
        view = pilot.app.query_one(TokenView)
        view.append(words(20_000))
        before = list(map(id, view.wrapper.lines[:-2]))
        view.append(words(5, 20_000))
        assert list(map(id, view.wrapper.lines[: len(before)])) == before


async def test_a_click_puts_the_cursor_on_the_token():
    async with TokenApp().run_test(size=(40, 10)) as pilot:
        view = pilot.app.query_one(TokenView)
        view.append([Token("abc"), Token(" def", 0.5, index=0), Token(" ghi", 0.5, index=1)])
        await pilot.click(view, offset=(6, 0))
        assert view.cursor == 1


def test_bars_are_proportional_and_centered():
    assert [hourglass.bar_cells(width, 256, 40) for width in (256, 128, 64, 1)] == [40, 20, 10, 2]
    assert hourglass.bar_cells("x", 256, 40) == 0
    segments = hourglass.bar(MAMBA, 128, 256, 41, Style.null())
    assert sum(len(segment.text) for segment in segments) == 41
    assert len(segments[0].text) == len(segments[2].text)


def test_types_are_told_apart_by_shape_too():
    assert len(set(hourglass.TEXTURE.values())) == len(hourglass.TEXTURE) == len(set(hourglass.SIGN.values()))


def test_the_outline_slopes_between_widths_and_shows_every_layer():
    shape = hourglass.outline([256, 128, 256], 9)
    assert [layer for layer, _ in shape] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [wide for _, wide in shape] == [256, 256, 192, 128, 128, 192, 256, 256, 256]
    assert [layer for layer, _ in hourglass.outline(list(range(1, 101)), 5)] == [0, 25, 50, 74, 99]
    assert hourglass.outline([], 5) == []
    assert hourglass.outline([64, "x", 0], 3)[1] == (1, 0.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0, "0"), (999, "999"), (1234, "1.23 k"), (999_999, "1.00 M"), (2.5e9, "2.50 G"),
     (0.123456, "0.123"), (math.nan, "NaN"), (math.inf, "∞")],
)  # fmt: skip
def test_compact_numbers(value, expected):
    assert numbers.compact(value) == expected


def test_sizes_and_times():
    assert [numbers.bytes_size(value) for value in (0, 1023, 24_800_000, 1 << 31)] == [
        "0 B",
        "1.0 kB",
        "23.7 MB",
        "2.0 GB",
    ]
    assert [numbers.duration(value) for value in (0, 59.6, 200, 3600, 15_120, 90_000)] == [
        "0 s", "1 min", "3 min 20 s", "1 h", "4 h 12 min", "1 d 1 h",
    ]  # fmt: skip
    assert [numbers.age(0, value) for value in (5, 120, 7200, 900_000)] == ["5 s", "2 min", "2 h", "10 d"]


# ---------------------------------------------------------------------- keys


def test_no_key_does_two_things_in_one_place():
    for context, table in keys.TABLE.items():
        names = [name for key in table for name in key.keys.split(",")]
        assert len(names) == len(set(names)), f"{context}: {sorted(n for n in names if names.count(n) > 1)}"


def test_no_pane_takes_a_key_from_the_application():
    everywhere = {name for key in keys.TABLE["app"] for name in key.keys.split(",")}
    for context, table in keys.TABLE.items():
        if context != "app":
            taken = everywhere & {name for key in table for name in key.keys.split(",")}
            assert not taken, f"{context} takes {taken}"


def test_a_letter_means_one_thing_in_all_tabs():
    """Two tabs may use a key for the same thing, and these few for what each of them does most."""
    spared = {"s", "S", "ctrl+n", "r", "c", "a", "m", "v", "b", "escape", "l", "h", "k", "j", "space", "1"}
    meanings = {}
    for context in ("config", "train", "charts", "chart", "checkpoints", "generate", "data", "runs"):
        for key in keys.TABLE[context]:
            for name in set(key.keys.split(",")) - spared:
                if len(name) == 1 or name.startswith("ctrl"):
                    meanings.setdefault(name, set()).add(key.label)
    sense = {"d": {"Delete"}, "g": {"Sample", "Generate"}, "ctrl+s": {"Save"}, "W": {"Write file"}}
    # Both replace the configuration that is edited.
    sense["ctrl+e"] = {"Preset", "Use settings"}
    several = {name: labels for name, labels in meanings.items() if len(labels) > 1}
    assert several == {name: sense[name] for name in ("g", "ctrl+e")}
    assert all(meanings[name] == labels for name, labels in sense.items())


def test_every_context_has_a_title():
    assert set(keys.TABLE) == set(keys.CONTEXTS)


def test_the_documentation_is_made_from_the_table():
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "keys.md"
    assert page.read_text() == keys.markdown(), "run: python -m mamba_tui.keys > docs/keys.md"


def test_keys_are_named_as_on_a_keyboard():
    assert [keys.key_name(key) for key in ("ctrl+r", "f1", "ctrl+pagedown", "plus", "R", "shift+left")] == [
        "Ctrl+R", "F1", "Ctrl+PgDn", "+", "R", "Shift+←",
    ]  # fmt: skip
