"""What a run reads, its settings, and the names above a chart with many runs behind it."""

from rich.style import Style

from core.runs import EventReader, EventWriter
from core.runs.events import ReadingEvent
from core.runs.history import RunHistory
from mamba_tui.backend.run_client import RunClient
from mamba_tui.launch_options import LaunchOptions
from mamba_tui.panes.train.charts import SERIES, Colors
from mamba_tui.panes.train.details import details, token_share
from mamba_tui.widgets.chart import legend
from tests.console.console_support import (
    configuration,
    console,
    make_run,
    run_event,
    step_event,
    typed,
    until_shown,
)


def test_a_reading_event_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write(ReadingEvent(step=7, rows=(("a.txt", 0.25), ("b/\x1b.txt", 1.0))))
    writer.close()
    history = RunHistory()
    history.feed(EventReader(path).poll())
    assert history.reading is not None
    assert history.reading.rows == (("a.txt", 0.25), ("b/\x1b.txt", 1.0))


def test_details_say_how_much_was_read_and_where_the_rows_are(tmp_path):
    options = LaunchOptions(config=configuration(), config_path=None, checkpoints=tmp_path)
    client = RunClient(options)
    run = make_run(tmp_path, steps=100)
    client.follow(run)
    client.poll(lambda: None)
    history = client.history
    told = run_event(config={"block_size": 7, "learning_rate": 0.5, "dropout": 0.0})
    history.feed(typed({"time": 1.0, **event} for event in (told, step_event(100))))
    history.feed([ReadingEvent(step=100, rows=(("one.txt", 0.0), ("one.txt", 0.999), ("\x1b[2J", 0.5)))])
    assert token_share(history) == (51_200, 26_000_000)
    text = details(client, 60).plain
    assert "51.2 k, 0% of 26.0 M" in text
    assert "0.33 over the text" in text
    assert "3 in 2 files" in text
    one = next(line for line in text.splitlines() if "one.txt" in line)
    assert one.split()[-1].startswith("●")
    assert one.endswith("●")
    assert "\x1b" not in text
    assert "● block_size" in text
    assert "  dropout" in text
    assert "● dropout" not in text
    assert "▲  checkpoint" in text


async def test_a_wide_screen_and_the_fourth_view_show_them(tmp_path):
    make_run(tmp_path / "checkpoints")
    async with console(tmp_path / "checkpoints", (160, 44)) as (app, pilot):
        await pilot.press("f3")
        await until_shown(pilot, "over the text")
        await until_shown(pilot, "sample at step 300")
        await pilot.press("4")
        await until_shown(pilot, "20 for each of 1.30 M parameters")
        assert app.focused.id == "details-view"


def test_names_of_many_runs_get_rows_of_their_own():
    entries = [(f"run-{index:03}", "2.5000", Style.null()) for index in range(12)]
    count = legend.rows_needed([f"{name} 0.0000" for name, _, _ in entries], 60, 2)
    assert count == 2
    rows = legend.behind_rows(entries, 60, count, Style.null())
    texts = ["".join(segment.text for segment in row) for row in rows]
    assert all(len(text) <= 60 for text in texts)
    assert "run-002" in texts[0]
    assert "run-000" not in "".join(texts)
    assert texts[-1].endswith(" more")
    assert legend.rows_needed(["training", "validation"], 60, 2) == 0


def test_a_run_behind_never_has_the_colors_of_the_run_itself():
    colors = Colors({f"series-{index}": f"#00000{index}" for index in range(SERIES)})
    assert not {colors.behind(index) for index in range(40)} & {colors.series(0), colors.series(1)}
