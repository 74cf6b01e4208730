"""The command line: what it accepts, and one clear sentence for everything else."""

import json

import pytest

from mamba_tui.cli.main import build_parser, main
from mamba_tui.cli.run_options import configuration


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*arguments):
    return build_parser().parse_args(["train", *arguments])


def test_the_working_file_is_written_once_and_then_read(empty_folder):
    config, path = configuration(parse())
    assert json.loads(path.read_text())["configuration_version"] == 1
    path.write_text(path.read_text().replace('"dropout": 0.0', '"dropout": 0.25'))
    again, _ = configuration(parse())
    assert (config.model.dropout, again.model.dropout) == (0.0, 0.25)


def test_flags_win_over_the_file():
    config, _ = configuration(
        parse("--preset", "shakespeare-char", "--dataset", "x", "--device", "cpu", "--max-iters", "7",
              "--set", "n_embd=[64,48,64]", "--set", "dropout=0.2")
    )  # fmt: skip
    assert config.model.n_embd == (64, 48, 64)
    assert (config.training.max_iters, config.model.dropout, config.data.dataset_dir) == (7, 0.2, "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "bok"], ["--preset", '"bok"', "shakespeare-char"]),
        (["--config", "none.json"], ["none.json", "does not exist"]),
        (["--set", "n_emb=3"], ["n_emb", '"n_embd"']),
        (["--set", "n_embd=0"], ["n_embd is 0", "from 1 to"]),
        (["--set", "n_head=[4,5,4]", "--set", "n_embd=[64,64,64]", "--set", "attention_type=standard"],
         ["n_head[1] is 5", "64"]),
        (["--set", "dropout"], ["--set", "key=value"]),
        (["--max-iters", "2000000000"], ["max_iters is 2000000000", "from 0 to 1,000,000,000"]),
        (["--device", "cuda:77"], ["cuda:77", "cpu"]),
        (["--device", "tpu"], ["tpu", "accepted"]),
        (["--dataset", "nowhere"], ["nowhere"]),
        (["--run", "../escape"], ["--run", "../escape"]),
        (["--resume"], ["--resume"]),
        (["--resume", "--run", "ghost"], ["ghost"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message_and_exit_code_2(capsys, empty_folder, arguments, words):
    (empty_folder / "dataset").mkdir()
    (empty_folder / "dataset" / "a.txt").write_text("Some text. " * 1000)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert word in error


def test_a_broken_working_file_is_named_with_its_line_and_kept(capsys, empty_folder):
    file = empty_folder / "current_configuration.json"
    file.write_text('{"config": {\n  "n_embd": [64,\n}')
    assert main(["train"]) == 2
    assert "current_configuration.json, line 3" in capsys.readouterr().err
    assert file.read_text() == '{"config": {\n  "n_embd": [64,\n}'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "train one first"),
        (["generate", "--run", "ghost"], "ghost"),
        (["generate", "--checkpoint", "none.pt"], "none.pt"),
        (["generate", "--temperature", "-1"], "--temperature is -1"),
        (["generate", "--top-p", "0"], "--top-p is 0"),
        (["generate", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["stop", "ghost"], "ghost"),
        (["attach", "ghost", "--no-ui"], "ghost"),
        (["logs", "ghost"], "ghost"),
        (["runs", "--checkpoints", "file"], "file"),
    ],
)
def test_other_commands_refuse_in_words(capsys, empty_folder, arguments, words):
    (empty_folder / "file").write_text("")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_no_runs_yet_says_what_to_do(capsys):
    assert main(["runs"]) == 0
    assert "mamba-tui launch" in capsys.readouterr().out
