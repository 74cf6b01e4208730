"""Every tab at two sizes, dark and light, with a run made of files and a frozen clock.

A snapshot is the text of the screen; below it, in the same positions, a letter for the style of each cell,
and the meaning of the letters. After an intended change:
MAMBA_TUI_UPDATE_SNAPSHOTS=1 python -m pytest tests/console/test_snapshots.py, then look at the difference.
"""

import contextlib
import os
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.color import ColorType
from textual.color import Color
from textual.widgets import TextArea

from core.config.speed import Speeds
from mamba_tui import clock, themes
from mamba_tui.backend.run_estimate import Survey
from mamba_tui.panes.configure import pane as config_pane
from mamba_tui.panes.configure import settings_list
from mamba_tui.widgets.chart.line_chart import LineChart
from tests.console.console_support import (
    LARGE,
    NOW,
    SMALL,
    FakeTrainer,
    configuration,
    console,
    end_run,
    make_run,
    rows,
    serving,
    texts_folder,
    until,
    until_shown,
)

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = os.environ.get("MAMBA_TUI_UPDATE_SNAPSHOTS") == "1"
SURVEY = Survey(
    files=3, text_bytes=3_000_000, memory_free=16 << 30, device="cpu", speeds=Speeds("", "cpu", 2)
)
KEYS = ["block_size", "dropout", "position", "dataset_dir", "tokenizer", "strip_gutenberg", "carry_chunks",
        "batch_size", "max_iters", "learning_rate", "warmup_iters", "weight_decay", "eval_interval",
        "sample_prompt", "seed", "device", "dtype", "compile", "threads"]  # fmt: skip
READY = {
    "configure": ("f2", "of 16.0 GB free"),
    "train": ("f3", "sample at step 400"),
    "checkpoints": ("f4", "Once upon a time 400"),
    "generate": ("f5", "parameters on cpu"),
    "data": ("f6", "stormy night"),
    "runs": ("f7", "sorted by changed"),
    "inspect": ("f8", "decided from layer 1"),
}
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789αβγδεζηθικλμνξοπρστυφχψω"


@pytest.fixture(autouse=True)
def still(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clock, "now", lambda: NOW)
    monkeypatch.setattr(config_pane, "survey", lambda *_: SURVEY)
    # A new setting is not a new look.
    monkeypatch.setattr(settings_list, "other_settings", lambda: KEYS)
    monkeypatch.setenv("TZ", "UTC")


async def settled(app, pilot):
    """The screen when it does not change any more."""
    before, same = None, 0
    while same < 3:
        await pilot.pause(0.1)
        now = picture(app)
        same = same + 1 if now == before else 0
        before = now
    return before


def style_in_words(style):
    if style is None:
        return "plain"
    found = [word for word in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, word)]
    colors = [color.get_truecolor().hex if color else "default" for color in (style.color, style.bgcolor)]
    return " ".join([*found, colors[0], "on", colors[1]])


def picture(app):
    """The screen's text, then its styles."""
    letters, rows_of_letters = {}, []
    for strip in app.screen._compositor.render_strips():
        row = ""
        for text, style, _ in strip:
            words = style_in_words(style)
            letters.setdefault(words, LETTERS[len(letters)])
            row += letters[words] * cell_len(text)
        rows_of_letters.append(row)
    legend = [f"{letter} {words}" for words, letter in letters.items()]
    return "\n".join([*rows(app), "", *rows_of_letters, "", *legend]) + "\n"


async def compare(name, app, pilot):
    """Compare the screen with the stored snapshot."""
    path = FOLDER / f"{name}.txt"
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(await settled(app, pilot), encoding="utf-8")
    assert path.exists(), f"there is no {path.name} yet: look at the screen, then update the snapshots"
    expected = path.read_text(encoding="utf-8")
    with contextlib.suppress(AssertionError):
        await until(pilot, lambda: picture(app) == expected, seconds=60)
    text = await settled(app, pilot)
    assert text == expected, f"{name} looks different; see this file's first lines"


async def shown(app, pilot, tab):
    key, text = READY[tab]
    await pilot.press(key)
    await until(pilot, lambda: app.tab == tab)
    await until_shown(pilot, text)
    await pilot.pause()
    app.status_line.clear()
    for editor in app.query(TextArea):
        editor.cursor_blink = False
    app.refresh()
    await pilot.pause()


# What a theme changes does not depend on the size.
@pytest.mark.parametrize(
    ("size", "theme"), [(SMALL, themes.NAMES[0]), (LARGE, themes.NAMES[0]), (SMALL, themes.NAMES[1])]
)
async def test_every_tab(size, theme):
    root = Path("checkpoints")
    texts_folder(Path())
    end_run(make_run(root, "first"))
    config = configuration(dataset_dir="texts", device="cpu")
    trainer = FakeTrainer(make_run(root, "second"))
    async with serving(trainer), console(root, size, config=config) as (app, pilot):
        app.theme = theme
        await until(pilot, lambda: app.run_client.history is not None and app.run_client.history.step == 400)
        await until(pilot, lambda: "40%" in rows(app)[0])
        for tab in READY:
            await shown(app, pilot, tab)
            await compare(f"{tab}-{size[0]}x{size[1]}-{theme.removeprefix('mamba-')}", app, pilot)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_fresh_start(size):
    async with console(Path("checkpoints"), size, config=configuration(dataset_dir="texts")) as (app, pilot):
        await until_shown(pilot, "of 16.0 GB free")
        for key, tab, text in (("f3", "train", "No run yet"), ("f4", "checkpoints", "No checkpoints yet")):
            await pilot.press(key)
            await until_shown(pilot, text)
            await compare(f"fresh-{tab}-{size[0]}x{size[1]}", app, pilot)


def contrast(style):
    return themes.contrast(Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor))


# Lines of grids and frames, curves and what is behind them; WCAG asks less of them than of text.
LINES = set("┈─│┤└┬╌━▐▕▏╭╮╰╯·") | {chr(code) for code in range(0x2801, 0x2900)}
# Areas: what they show stands beside them in words.
AREAS = set(" █▒░\u2800")
FAINT = LINES | AREAS
LINE_CONTRAST = 3.0


@pytest.mark.parametrize("theme", themes.NAMES)
async def test_every_theme_shows_the_same_and_can_be_read(theme):
    """WCAG 2.1 asks for a contrast of 4.5 for text (1.4.3) and 3 for lines that mean something (1.4.11)."""
    root = Path("checkpoints")
    texts_folder(Path())
    config, poor = configuration(dataset_dir="texts", device="cpu"), set()
    async with serving(FakeTrainer(make_run(root, "second"))), console(root, config=config) as (app, pilot):
        app.theme = theme
        await until(pilot, lambda: app.run_client.history is not None and app.run_client.history.step == 400)
        for tab in READY:
            await shown(app, pilot, tab)
            for strip in app.screen._compositor.render_strips():
                for text, style, _ in strip:
                    if set(text) <= AREAS or style is None or style.color is None or style.bgcolor is None:
                        continue
                    if ColorType.DEFAULT in (style.color.type, style.bgcolor.type):
                        continue
                    least = LINE_CONTRAST if set(text) <= FAINT else themes.TEXT_CONTRAST
                    if contrast(style) < least:
                        poor.add(f"{text.strip()!r} in {tab}: {contrast(style):.2f}, {style}")
    assert not poor, theme


@pytest.mark.parametrize("theme", themes.THEMES, ids=themes.NAMES)
def test_every_color_of_every_theme_can_be_read(theme):
    """Also those that no tab shows at the moment: of states, of layer types, of many runs in one chart."""
    colors = {**theme.to_color_system().generate(), **theme.variables}
    series = [f"series-{index}" for index in range(8)]
    texts = ["foreground", "text-muted", "accent", "warning", "error", "success", *series]
    texts += ["layer-mamba", "layer-standard", "layer-mamba2"]
    bounds = {
        themes.TEXT_CONTRAST: (("background", "surface"), texts),
        LINE_CONTRAST: (("background", "surface"), ["line", "series-faint", "primary"]),
    }
    for least, (backgrounds, names) in bounds.items():
        for background in backgrounds:
            for name in names:
                value = themes.contrast(Color.parse(colors[name]), Color.parse(colors[background]))
                assert value >= least, f"{name} on {background}: {value:.2f}"
    for name in ("foreground", "text-muted", "accent"):
        assert (
            themes.contrast(Color.parse(colors[name]), Color.parse(colors["panel"])) >= themes.TEXT_CONTRAST
        ), name


async def test_without_color_everything_can_still_be_told_apart(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    root = Path("checkpoints")
    texts_folder(Path())
    config = configuration(dataset_dir="texts", device="cpu")
    async with serving(FakeTrainer(make_run(root, "second"))), console(root, config=config) as (app, pilot):
        assert app._filters, "NO_COLOR has no effect"
        for tab in READY:
            await shown(app, pilot, tab)
            colors = set()
            for strip in app.screen._compositor.render_strips():
                for text, style, _ in strip.apply_filter(app._filters[0], app.background_colors[1]):
                    if style and style.color and style.bgcolor and not set(text) <= FAINT:
                        assert contrast(style) > 1.5, f"{text!r} in {tab}"
                        colors.add(style.color.get_truecolor())
            assert all(max(color) - min(color) <= 2 for color in colors)
        assert len(app.query(LineChart)) > 2
