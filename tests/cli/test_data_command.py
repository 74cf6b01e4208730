import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from core.data.corpus.cache import cache_folder
from core.data.corpus.token_store import cache_lock
from mamba_tui.cli import data as data_command
from mamba_tui.cli import main as cli
from tests.data.test_corpus import shelf, story

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder of texts with the usual oddities, and an empty working folder."""
    monkeypatch.chdir(tmp_path)
    folder = shelf(tmp_path / "texts")
    (folder / "empty.txt").write_text("")
    (folder / "twin of the first.txt").write_text(story(0))
    (folder / "\x1b[31mred\u202e.txt").write_text("Füße über Öl\n" * 40, encoding="latin-1")
    return folder


def data(*arguments, folder="texts", kind="byte"):
    return cli.main(["data", *arguments, "--dataset", str(folder), "--set", f"tokenizer={kind}"])


def terminal(monkeypatch, width=80):
    """Make stdout a terminal of this width; the returned file has the output."""
    output = io.StringIO()
    monkeypatch.setattr(
        data_command,
        "_console",
        lambda: Console(file=output, width=width, force_terminal=True, highlight=False, markup=False),
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    return output


def plain(output):
    from rich.text import Text

    return Text.from_ansi(output.getvalue()).plain


def test_info_piped_is_a_line_of_fields_for_every_file(texts, capsys):
    assert data("info") == 0
    lines = capsys.readouterr().out.splitlines()
    titles = lines[0].split("\t")
    rows = {line.split("\t")[0]: dict(zip(titles, line.split("\t"))) for line in lines[1:] if "\t" in line}
    assert len(rows) == 9
    assert rows["book 1.txt"]["tokens"] == str(len(story(1)) + 1)
    assert rows["empty.txt"]["split"] == "skipped"
    assert rows["empty.txt"]["notes"] == "is empty"
    assert rows["twin of the first.txt"]["notes"] == "the same text as book 0.txt"
    assert rows["␛[31mred⇄.txt"]["encoding"] == "cp1252"
    assert any(line.startswith("# validation: ") for line in lines)


def test_info_as_json_holds_exact_names_and_numbers(texts, capsys):
    assert data("info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    files = {file["name"]: file for file in found["files"]}
    assert files["book 1.txt"]["tokens"] == len(story(1)) + 1
    assert files["\x1b[31mred\u202e.txt"]["encoding"] == "cp1252"
    assert files["twin of the first.txt"]["notes"] == ["the same text as book 0.txt"]
    assert found["totals"]["train_tokens"] == sum(
        file["tokens"] - file["validation_tokens"] for file in files.values()
    )


def test_info_on_a_terminal_fits_eighty_columns_and_holds_no_foreign_escapes(texts, monkeypatch):
    (texts / ("a very long name " * 8 + ".txt")).write_text(story(9))
    output = terminal(monkeypatch)
    assert data("info") == 0
    shown = plain(output)
    assert max(map(cell_len, shown.splitlines())) <= 80
    for expected in (
        "book 1.txt",
        "cp1252?",
        "validation",
        "not read",
        "the same text as book 0.txt",
        "duplicates",
    ):
        assert expected in shown
    assert "\x1b[31mred" not in output.getvalue()
    assert "\u202e" not in output.getvalue()


def test_info_shortens_long_lists_unless_asked(texts, monkeypatch):
    monkeypatch.setattr(data_command, "MOST_ROWS", 3)
    output = terminal(monkeypatch)
    assert data("info") == 0
    assert "... and 6 more; --all lists them" in plain(output)
    output = terminal(monkeypatch)
    assert data("info", "--all") == 0
    assert "more; --all" not in plain(output)


def test_prepare_says_what_it_did_and_the_second_time_that_it_was_ready(texts, capsys):
    assert data("prepare") == 0
    first = capsys.readouterr().out
    assert "7 files encoded" in first
    assert "validation: " in first
    assert data("prepare") == 0
    assert "everything was prepared already" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["byte", "auto"])
def test_sample_shows_the_tokens_of_a_file(texts, capsys, kind):
    assert data("sample", "book 2", "--at", "0", "--tokens", "30", kind=kind) == 0
    heading, *shown = capsys.readouterr().out.splitlines()
    assert heading.startswith("# book 2.txt, tokens 0 to 30 of ")
    tokens = "\n".join(shown).split("│")
    assert len(tokens) == 30
    assert tokens[0] == "<|endoftext|>"
    assert "".join(tokens[1:]).replace("⏎", "\n") == story(2)[: len("".join(tokens[1:]))]


def test_sample_on_a_terminal_shades_tokens_and_spells_bytes(texts, monkeypatch):
    output = terminal(monkeypatch)
    assert data("sample", "red", "--at", "0", "--tokens", "8") == 0
    assert "<|endoftext|>F⟨C3⟩⟨BC⟩⟨C3⟩⟨9F⟩e" in plain(output)
    assert "\x1b[" in output.getvalue()


def test_sample_of_any_file_stays_inside_it(texts, capsys):
    for _ in range(20):
        assert data("sample", "--tokens", "5") == 0
        assert capsys.readouterr().out.count("│") == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "no such file"], 'no file that was read is called "no such file"'),
        (["sample", "--tokens", "0"], "--tokens is 0"),
        (["sample", "--write"], "contains text already"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(texts, capsys, arguments, says):
    assert data(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_missing_or_empty_folder_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data("info", folder="none") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert data("prepare", folder="empty") == 2
    assert "no text files" in capsys.readouterr().err


def test_the_sample_text_is_written_into_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data("sample", "--write", folder="new") == 0
    assert "Python language reference" in capsys.readouterr().out
    assert data("info", folder="new") == 0


def test_clean_deletes_what_was_prepared_and_keeps_text_and_split(texts, capsys):
    data("prepare", kind="auto")
    files = sorted(path.name for path in texts.iterdir())
    record = (cache_folder(str(texts)) / "split.json").read_bytes()
    capsys.readouterr()
    assert data("clean") == 0
    assert "deleted" in capsys.readouterr().out
    assert sorted(path.name for path in texts.iterdir()) == files
    left = sorted(path.name for path in (cache_folder(str(texts))).iterdir())
    assert left == ["folder.json", "lock", "split.json"]
    assert (cache_folder(str(texts)) / "split.json").read_bytes() == record
    assert data("clean", "--forget-split") == 0
    assert not (cache_folder(str(texts)) / "split.json").exists()
    assert data("prepare") == 0


def test_clean_waits_for_a_process_that_prepares_and_says_so(texts, capsys):
    data("prepare")
    done = threading.Event()

    def hold():
        with cache_lock(cache_folder(str(texts)), lambda: None):
            held.set()
            while "waiting for the process" not in "".join(errors):
                errors.append(capsys.readouterr().err)
                time.sleep(0.01)
            done.set()

    held, errors = threading.Event(), []
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert data("clean") == 0
    assert done.is_set()
    thread.join()


def test_cleaning_what_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data("clean", folder="none") == 2
    assert "does not exist" in capsys.readouterr().err


def test_looking_at_text_writes_no_configuration_and_loads_no_torch(texts, tmp_path):
    code = (
        "import sys; from mamba_tui.cli import main as cli\n"
        "code = cli.main(['data', 'info', '--dataset', 'texts', '--set', 'tokenizer=byte'])\n"
        "print(code, [name for name in ('torch', 'textual') if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stderr.strip() == "0 []"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]
