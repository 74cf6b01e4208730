"""Finding similar passages from the Data tab, with a search process that has no model."""

import contextlib
import sys

from core.runs import prepare_run
from mamba_tui.panes.data.similar import HitRows, Searcher, SimilarDialog, passage_around
from mamba_tui.widgets.token_view import Token
from tests.console.console_support import add_checkpoint, until
from tests.console.test_data_pane import configuration, console

FAKE = r"""
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "cancel":
        open(sys.argv[1], "a").write("canceled ")
        continue
    def answer(event, **fields):
        print(json.dumps({"event": event, "id": request["id"], **fields}), flush=True)
    answer("progress", done=1000, size=4000, name="book.txt")
    if "nothing" in request["passage"]:
        answer("error", message="no such luck")
        continue
    if "wait" in request["passage"]:
        continue
    hit = {"document": 1, "start": 0, "end": 9, "text": request["passage"]}
    file = request["texts"][0] + "/book.txt"
    hits = [{**hit, "nearness": 1 - n / 100, "file": file, "character": n * 1000} for n in range(100)]
    answer("done", hits=hits, passages=5000, files=3, indexed=1, skipped={}, seconds=1.0)
"""


def tokens_of(*texts):
    return [Token(text, 2.0 if text == "<|endoftext|>" else float(n % 2)) for n, text in enumerate(texts)]


def test_the_words_around_the_cursor_inside_its_document():
    tokens = tokens_of(
        "old", " book", "<|endoftext|>", "The", " sea", "⏎\n", "sh", "ip", " ⟨C3⟩", "⟨A9⟩", "t"
    )
    assert passage_around(tokens, 7) == "The sea ship ét"
    assert passage_around(tokens, 2) == "The sea ship ét"
    assert passage_around(tokens, 0) == passage_around(tokens, None) == "old book"
    assert passage_around([], None) == ""
    many = tokens_of(*(f" w{n}" for n in range(500)))
    words = passage_around(many, 250).split()
    assert len(words) == 100
    assert words == [f"w{n}" for n in range(199, 299)]
    assert passage_around(many, 490).split() == [f"w{n}" for n in range(400, 500)]


@contextlib.asynccontextmanager
async def searching(tmp_path, text):
    """A console whose dialog searches for a passage; its Data tab, and the log of the fake search process."""
    folder, log = tmp_path / "texts", tmp_path / "log"
    folder.mkdir()
    (folder / "book.txt").write_text(text)
    run = prepare_run(tmp_path / "checkpoints", "harbor", configuration(folder))
    add_checkpoint(run, 600)
    (tmp_path / "fake.py").write_text(FAKE)
    async with console(folder, tmp_path).run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = pilot.app.pane
        pane.searcher = Searcher([sys.executable, str(tmp_path / "fake.py"), str(log)])
        await until(pilot, lambda: pane.text.tokens)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(pilot.app.screen, SimilarDialog))
        yield pilot, pane, log


async def test_find_similar_lists_passages_that_can_be_paged(tmp_path):
    async with searching(tmp_path, "It was a dark and stormy night. " * 400) as (pilot, _, _):
        dialog = pilot.app.screen
        await until(pilot, lambda: dialog.query_one(HitRows).hits)
        rows = dialog.query_one(HitRows)
        line = rows.render_line(1).text
        assert "1.000  book.txt, character 0" in line
        assert "It was a dark" in line
        state = str(dialog.query_one("#similar-state").render())
        assert state == "100 of 5,000 passages in 3 files, by harbor, step 600"
        await pilot.press("pagedown", "down")
        await until(pilot, lambda: rows.cursor >= rows.visible_rows)
        shown = f"book.txt, character {rows.cursor * 1000:,}"
        await until(pilot, lambda: shown in str(dialog.query_one("#similar-text").render()))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not dialog)


async def test_a_search_that_fails_says_why_and_one_that_is_left_is_canceled(tmp_path):
    async with searching(tmp_path, "nothing at all. " * 90) as (pilot, pane, log):
        state = pilot.app.screen.query_one("#similar-state")
        await until(pilot, lambda: "no such luck" in str(state.render()))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, SimilarDialog))
        pane.work(pane._similar("wait"), "data-similar")
        await until(pilot, lambda: isinstance(pilot.app.screen, SimilarDialog))
        state = pilot.app.screen.query_one("#similar-state")
        await until(pilot, lambda: "reading book.txt: 25%" in str(state.render()))
        await pilot.press("escape")
        await until(pilot, lambda: log.exists() and "canceled" in log.read_text())
