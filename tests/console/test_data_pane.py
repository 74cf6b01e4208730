"""The Data tab, driven in a terminal of 80x24 against a real data process."""

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.config.schema import build, flat
from core.data.corpus.cache import cache_folder
from core.data.corpus.token_store import cache_lock
from core.data.server import DataService
from core.system.json_lines import Request, Server
from mamba_tui.app import LaunchOptions, MambaTUI
from tests.console.console_support import eval_event, make_run, run_event, until, write_events
from tests.data.test_corpus import shelf, story

ROOT = Path(__file__).parents[2]


def configuration(folder, **changes):
    return build({"dataset_dir": str(folder), "tokenizer": "byte", **changes})


def console(folder, tmp_path, attach=None, **changes):
    options = LaunchOptions(
        config=configuration(folder, **changes),
        config_path=None,
        checkpoints=tmp_path / "checkpoints",
        run_name=None,
        mode="auto",
        read_only=False,
        attach=attach,
    )
    return MambaTUI(options, state_path=None)


def head(pane):
    return str(pane.query_one("#data-head").render())


def about(pane):
    return str(pane.query_one("#data-about").render())


def shown(pane):
    return "".join(token.text for token in pane.text.tokens).replace("⏎\n", "\n")


async def test_one_file_is_told_as_one(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "book.txt").write_text("It was a dark and stormy night. " * 400)
    async with console(folder, tmp_path).run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = pilot.app.pane
        await until(pilot, lambda: pane.files.files)
        assert "in 1 file, 1 document;" in head(pane)


async def test_the_tab_lists_files_and_shows_the_tokens_of_the_one_under_the_cursor(tmp_path):
    folder = shelf(tmp_path / "texts")
    (folder / "[@click=app.quit]empty\x1b.txt").write_text("")
    app = console(folder, tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = app.pane
        await until(pilot, lambda: pane.files.files)
        assert "7 files" not in head(pane)
        assert "6 files" in head(pane)
        assert "validation" in head(pane)
        rows = [pane.files.render_line(line).text for line in range(1, 8)]
        assert max(map(len, rows)) <= 80
        assert "not read" in rows[0]
        assert "\x1b" not in rows[0]
        assert "is empty" in about(pane)
        await pilot.press("down", "down", "down")
        await until(pilot, lambda: shown(pane) == "<|endoftext|>" + story(2)[:999])
        await pilot.press("enter")
        await until(pilot, lambda: pane.text.has_focus)
        await pilot.press("right", "right")
        await until(pilot, lambda: "token 1:" in about(pane))
        assert f"id {ord(story(2)[0])}, 1 byte" in about(pane)
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: "tokens 1,000 to" in about(pane))
        await until(pilot, lambda: shown(pane) == story(2)[999:])


async def test_the_validation_loss_of_each_file_stands_beside_it(tmp_path):
    folder = shelf(tmp_path / "texts")
    run = make_run(tmp_path / "checkpoints", dataset_dir=str(folder))
    event = {
        "kind": "files",
        "step": 400,
        "files": [["book 1.txt", 90, 1.0, 1.5], ["book 4.txt", 90, 2.0, 2.75]],
    }
    write_events(run, [run_event(400, config=flat(run.config())), eval_event(400), event])
    app = console(folder, tmp_path, attach=run.name)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = app.pane
        await until(pilot, lambda: pane.files.losses)
        rows = [pane.files.render_line(line).text for line in range(7)]
        assert "bits/B" in rows[0]
        assert "1.50" in rows[2]
        assert "2.75" in rows[5]
        assert "1.50" not in rows[1] + rows[3]
        assert max(map(len, rows)) <= 80
        said = "validation loss of run-001 at step 400: book 1.txt 1.5000 is the lowest, book 4.txt 2.7500"
        assert said in " ".join(head(pane).split())
        pane.document.set("dataset_dir", str(tmp_path / "other"))
        pane.run_changed()
        assert not pane.files.losses, "another folder's files are not those of the run"


async def test_escape_ends_preparing_and_p_begins_it_again(tmp_path):
    folder = shelf(tmp_path / "texts")
    cache = cache_folder(str(folder))
    async with console(folder, tmp_path).run_test(size=(80, 24)) as pilot:
        with cache_lock(cache, lambda: None):  # so that it cannot be ready before it is ended
            await pilot.press("f6")
            pane = pilot.app.pane
            await until(pilot, lambda: "another process" in head(pane))
            await pilot.press("escape")
            await until(pilot, lambda: "preparing was canceled" in head(pane) + about(pane))
        await pilot.press("r")
        await until(pilot, lambda: pane.files.files)


async def test_an_empty_folder_says_so_and_s_writes_the_sample(tmp_path):
    (tmp_path / "texts").mkdir()
    app = console(tmp_path / "texts", tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = app.pane
        await until(pilot, lambda: "no text files" in head(pane))
        await pilot.press("i")
        await until(pilot, lambda: pane.files.files)
        assert len(pane.files.files) == 16


async def test_a_read_only_console_writes_no_sample(tmp_path):
    (tmp_path / "texts").mkdir()
    app = console(tmp_path / "texts", tmp_path)
    app.run_client.read_only = True
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        await until(pilot, lambda: "no text files" in head(app.pane))
        await pilot.press("i")
        await pilot.pause(0.2)
        assert list((tmp_path / "texts").iterdir()) == []


async def test_a_process_that_dies_is_said_and_started_again(tmp_path):
    folder = shelf(tmp_path / "texts")
    app = console(folder, tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("f6")
        pane = app.pane
        await until(pilot, lambda: pane.files.files)
        pane.process._process.kill()
        await until(pilot, lambda: "ended unexpectedly" in head(pane))
        (folder / "book 1.txt").unlink()
        await pilot.press("r")
        await until(pilot, lambda: len(pane.files.files) == 5)


def talk(*requests):
    """Send requests to a process of its own; its events."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "core.data.server"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def serve(*steps):
    """The same in this process: (what the output must say first, request)."""
    sink = io.StringIO()
    server = Server(Patient(sink, *steps), sink.write)
    server.start()
    server.serve(DataService().handlers())
    return [json.loads(line) for line in sink.getvalue().splitlines()]


class Patient:
    """Lines of input that come one by one, each when the output says that it is time."""

    def __init__(self, sink, *steps):
        self.sink = sink
        self.steps = steps

    def __iter__(self):
        for wanted, request in self.steps:
            while wanted not in self.sink.getvalue():
                time.sleep(0.001)
            yield json.dumps(request) + "\n"


def test_previews_follow_the_preparing(tmp_path):
    config = flat(configuration(shelf(tmp_path), tokenizer="auto"))
    events = serve(
        ("", {"op": "prepare", "id": 1, "config": config}),
        ("corpus", {"op": "preview", "id": 2, "name": "book 0.txt", "start": 0, "count": 50}),
        ("preview", {"op": "preview", "id": 3, "name": "no such file", "start": 0, "count": 50}),
        ("error", {"op": "quit"}),
    )
    by_id = {event["id"]: event for event in events}
    assert by_id[1]["event"] == "corpus"
    assert by_id[1]["count"] == 6
    assert by_id[2]["tokens"][0][1:] == ["<|endoftext|>", True]
    assert "".join(text for _, text, _ in by_id[2]["tokens"][1:]) in story(0)
    assert by_id[3]["event"] == "error"


def test_cancelling_ends_the_preparing_with_a_sentence(tmp_path, monkeypatch):
    config = flat(configuration(shelf(tmp_path, count=40)))
    monkeypatch.setattr("core.data.corpus.progress.Reporter.__init__.__defaults__", (1e9,))
    original = Request.reply

    def slowly(self, event, **fields):
        original(self, event, **fields)
        while fields.get("stage", "").startswith("encoding") and not self.canceled:
            time.sleep(0.001)

    monkeypatch.setattr(Request, "reply", slowly)
    events = serve(
        ("", {"op": "prepare", "id": 1, "config": config}),
        ("encoding", {"op": "cancel", "id": 1}),
        ("canceled", {"op": "quit"}),
    )
    assert events[-1]["event"] == "error"
    assert "canceled" in events[-1]["message"]


@pytest.mark.parametrize(
    ("config", "says"),
    [({"dataset_dir": "/nowhere"}, "does not exist"), ({"block_size": 0}, "block_size is 0")],
)
def test_bad_input_is_an_event_not_an_end(config, says):
    events = serve(
        ("", {"op": "prepare", "id": 1, "config": config}),
        ("error", {"op": "preview", "id": 2, "name": "a", "start": 0, "count": 1}),
        ("no text has been prepared", []),
        ("JSON object", {"op": "quit"}),
    )
    errors = [event for event in events if event["event"] != "progress"]
    assert [(event["event"], event["id"]) for event in errors] == [
        ("error", 1),
        ("error", 2),
        ("error", None),
    ]
    assert says in errors[0]["message"]


def test_nonsense_on_the_line_is_passed_over_and_torch_stays_out(tmp_path):
    assert [event for event in talk({"op": "dance"}, {"op": "quit"}) if event["event"] != "error"] == []
    code = (
        "import sys, core.data.server, mamba_tui.panes.data.pane\n"
        "print([name for name in ('torch', 'tokenizers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.strip() == "[]", result.stderr


async def test_the_pane_gives_back_its_process(tmp_path):
    app = console(shelf(tmp_path / "texts"), tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f6")
        pane = app.pane
        await until(pilot, lambda: pane.files.files)
        process = pane.process._process
        await pane.close()
        await asyncio.wait_for(process.wait(), 120)
        assert not pane.process.running
