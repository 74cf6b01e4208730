"""Hostile text wherever foreign text can appear: nothing acts, nothing crashes, nothing escapes."""

import json
import unicodedata

import pytest

from core.runs.events import KINDS, SampleEvent, fields_of
from mamba_tui.panes.runs.runs_screen import RunRows
from mamba_tui.widgets.safe_text import visible
from mamba_tui.wording import event_sentence, sample_content
from tests.console.console_support import (
    LARGE,
    SMALL,
    FakeTrainer,
    console,
    end_run,
    make_run,
    rows,
    serving,
    typed,
    until,
    until_shown,
    write_events,
)

MARKUP = "[@click=app.quit]x[/] [/x] a[/ [type=x, v={'a[0]'}]"
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\u202eright to left\u2066"
WIDE = "漢字🦜" * 40
LONG = "x" * 10_000
HOSTILE = f"{MARKUP} {ESCAPES} {WIDE}"


def check_screen(app):
    """What would be sent to the terminal: no control characters except Textual's own."""
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            if segment.control:
                continue
            for character in segment.text:
                assert unicodedata.category(character) not in ("Cc", "Cf", "Cs"), repr(segment.text)
            style = segment.style
            assert not (style and style.meta and "@click" in style.meta), f"{segment.text!r} can be clicked"


def hostile_run(root, name):
    run = make_run(root, name, sample=HOSTILE)
    run.tokenizer_path.write_text(json.dumps({"kind": HOSTILE, "vocab_size": 5}))
    run.log_path.write_text(HOSTILE + LONG)
    write_events(
        run,
        [
            {"kind": "state", "state": "preparing", "detail": HOSTILE, "step": 400, "progress": 0.5},
            {"kind": "warning", "message": HOSTILE + LONG},
            {"kind": "sample", "step": 401, "prompt": MARKUP, "text": MARKUP + ESCAPES + LONG},
            {"kind": "error", "message": HOSTILE, "advice": MARKUP, "traceback": LONG},
            {"kind": "command", "id": ESCAPES, "command": MARKUP, "accepted": False, "message": ESCAPES},
        ],
    )
    return run


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_names_samples_details_and_logs(tmp_path, size):
    name = "[@click=app.quit]run[ 漢字🦜 x"
    async with serving(FakeTrainer(hostile_run(tmp_path, name))), console(tmp_path, size) as (app, pilot):
        await until(
            pilot, lambda: app.run_client.history is not None and app.run_client.history.error is not None
        )
        for keys in (
            ("f3",),
            ("v",),
            ("v",),
            ("v", "m"),
            ("a",),
            ("escape",),
            ("f4",),
            ("f5",),
            ("f2",),
            ("f10",),
        ):
            await pilot.press(*keys)
            await pilot.pause(0.15)
            check_screen(app)
        await pilot.press("escape", "ctrl+q")
        await pilot.pause(0.1)
        check_screen(app)
        assert app.is_running


async def test_a_name_with_control_characters_made_by_other_hands(tmp_path):
    run = make_run(tmp_path, "innocent")
    end_run(run)
    run.path.rename(tmp_path / "evil\x1b[2J\u202e\n[x]")
    async with console(tmp_path, LARGE) as (app, pilot):
        await pilot.press("f3", "a")
        await until(pilot, lambda: app.screen.query(RunRows) and app.screen.query_one(RunRows).rows)
        await pilot.pause()
        check_screen(app)
        assert "evil␛[2J⇄␊[x]" in "\n".join(rows(app))
        await pilot.press("enter", "f4")
        await pilot.pause(0.2)
        check_screen(app)


async def test_generated_tokens(tmp_path):
    end_run(make_run(tmp_path))
    async with console(tmp_path) as (app, pilot):
        await pilot.press("f5")
        await until(
            pilot,
            lambda: app.tab == "generate" and app.query("#prompt") and app.query_one("#prompt").has_focus,
        )
        await pilot.press(*"hostile", "enter")
        await until_shown(pilot, "[@click=app.quit]x[/]")
        await until(pilot, lambda: app.pane.sides[0].speed)
        check_screen(app)
        app.query_one("#text-0").focus()
        await pilot.press("left", "f10")
        await pilot.pause()
        check_screen(app)
        await pilot.press("enter")
        await pilot.pause()
        check_screen(app)


@pytest.mark.parametrize("text", [MARKUP, ESCAPES, WIDE, LONG, "\ud800", ""])
async def test_notices_questions_and_prompts(tmp_path, text):
    from mamba_tui.widgets.dialogs import Answer, Choice, Page, Prompt, Question
    from mamba_tui.widgets.safe_text import safe

    async with console(tmp_path) as (app, pilot):
        app.say(text)
        app.say(text, problem=True)
        await pilot.pause()
        check_screen(app)
        for dialog in (
            Question(text, text, [Answer("a", text), Answer("b", "b")]),
            Prompt(text, text, text[:50].encode("utf-8", "replace").decode(), ""),
            Choice(text, [("a", text, text), ("b", text, text)], text),
            Page(text, safe(text, lines=True)),
        ):
            app.push_screen(dialog)
            await pilot.pause()
            if not isinstance(dialog, Prompt):
                check_screen(app)
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_values_in_a_configuration(tmp_path):
    from tests.console.console_support import configuration

    config = configuration(dataset_dir=HOSTILE, sample_prompt=LONG, tokenizer=MARKUP, device="cpu")
    async with console(tmp_path, LARGE, config=config) as (app, pilot):
        await pilot.pause(0.2)
        check_screen(app)
        await pilot.press("ctrl+r")
        await pilot.pause(0.2)
        check_screen(app)
        await pilot.press("escape", "slash", *"sample_prompt", "enter", "enter", "a", "escape")
        await pilot.pause()
        check_screen(app)


def test_every_kind_of_note_is_a_safe_sentence():
    samples = {
        "bool": True, "text": ESCAPES, "name": ESCAPES, "[number]": [1.0],
        "[[text, 0..1]]": [[ESCAPES, 0.5]], "[[text, int, number, number]]": [[ESCAPES, 1, 1.0, 1.0]],
    }  # fmt: skip
    for kind in KINDS.values():
        values = {"kind": kind.kind, "time": 1.0}
        for field in fields_of(kind)[1:]:
            values[field.name] = (
                {} if field.made_of.word.startswith("{") else samples.get(field.made_of.word, 1)
            )
        (event,) = typed([values])
        words = event_sentence(event)
        assert words
        assert not any(unicodedata.category(c) in ("Cc", "Cf") for c in visible(words))
    sample = sample_content(SampleEvent(step=1, prompt=MARKUP, text=MARKUP + LONG))
    assert sample.plain.startswith("[@click")
    assert len(sample.plain) < 9000
