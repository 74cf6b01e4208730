"""`mamba-tui generate` as users see it: in a pipe, on a terminal, with odd streams."""

from __future__ import annotations

import io
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core.checkpoint import save
from core.config.schema import build, flat
from core.data.tokenizer.tokenizer import byte_tokenizer
from core.model import GPT
from core.runs import CheckpointInfo, checkpoint_path

ROOT = Path(__file__).parents[2]
PATIENCE = 240
TOKENIZER = byte_tokenizer()
CONFIG = build({"n_embd": [8], "n_head": 1, "attention_type": "mamba", "block_size": 4})
GREEDY = ["--temperature", "0", "--max-new-tokens", "3"]


def constant_model(token):
    """A model that always predicts one token: all embeddings point the same way, its own the farthest."""
    model = GPT(CONFIG.model, TOKENIZER.vocab_size)
    with torch.no_grad():
        for weight in {model.embedding.weight, model.head.weight}:
            weight.fill_(0.1)
            weight[token] = 1.0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose best checkpoint writes tabs, and whose newest one ends every document at once."""
    folder = tmp_path_factory.mktemp("generate")
    run = folder / "checkpoints" / "harbor"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    for step, token, loss in ((10, ord("\t"), 1.5), (20, TOKENIZER.eot, 2.5)):
        payload = {
            "format": 1, "step": step, "config": flat(CONFIG), "vocab_size": TOKENIZER.vocab_size,
            "tokenizer": TOKENIZER.to_dict(), "model": constant_model(token).state_dict(),
        }  # fmt: skip
        path = checkpoint_path(run, step)
        save(path, payload, CheckpointInfo(step, path, 0, "", None, loss, None, 0.0, best=False))
    return folder


def command(*arguments):
    return [sys.executable, "-m", "mamba_tui.cli.main", "generate", "--device", "cpu", *GREEDY, *arguments]


def environment(folder, **changes):
    home = {"HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return {**os.environ, **home, **changes}


def generate(folder, *arguments, stdin=b"", **changes):
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder, **changes), input=stdin,
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done


def shell(folder, redirection, *arguments):
    """The same with redirections of the shell's own."""
    line = f"{shlex.join(command(*arguments))} {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(folder), capture_output=True, timeout=PATIENCE
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    return done


def test_the_best_checkpoint_generates_and_a_pipe_gets_the_exact_text(folder):
    done = generate(folder, "--prompt", "a\tb\u200d\x1b\r")
    assert (done.returncode, done.stdout) == (0, "a\tb\u200d\x1b\r\t\t\t\n".encode())
    words = done.stderr.decode()
    assert "harbor, step 10, the best: validation 1.500 (the newest is step 20: validation 2.500)" in words
    assert "length reached after 3 tokens" in words


def test_the_newest_generates_on_request_and_says_why_it_ended(folder):
    done = generate(folder, "--checkpoint", "newest", "--run", "harbor", "--prompt", "ab")
    assert (done.returncode, done.stdout) == (0, b"ab\n")
    assert b"step 20, the newest: validation 2.500 (the best is step 10" in done.stderr
    assert b"end of document after 1 token," in done.stderr
    assert b"--ignore-end continues" in done.stderr
    done = generate(folder, "--newest", "--prompt", "ab", "--ignore-end")
    assert done.stdout.rstrip(b"\n") == b"ab"
    assert b"length reached after 3 tokens" in done.stderr


def test_a_prompt_and_a_stop_text_may_be_anything(folder):
    done = generate(folder, "--prompt", "-x", "--stop", "--", "--stop", "\t\t", "--temperature", "1e-46")
    assert (done.returncode, done.stdout) == (0, b"-x\n")
    assert b"stop text after 2 tokens" in done.stderr


def test_a_prompt_comes_from_a_file_or_standard_input_as_a_whole(folder):
    (folder / "prompt.txt").write_bytes("one\n\ntwo é\n".encode())
    expected = "one\n\ntwo é\t\t\t\n".encode()
    assert generate(folder, "--prompt-file", "prompt.txt").stdout == expected
    assert generate(folder, stdin="one\n\ntwo é\n".encode()).stdout == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt-file", "none.txt"], "--prompt-file is none.txt, which cannot be read"),
        (["--prompt-file", "binary"], "--prompt-file is binary, whose byte 1 is not UTF-8"),
        (["--prompt-file", "x", "--prompt", "y"], "--prompt"),
        (["--prompt"], "--prompt"),
        (["--stop", ""], '--stop is [""]; accepted'),
        (["--top-p", "2"], "--top-p is 2.0; accepted: a number from 0.001 to 1"),
        (["--repetition-penalty", "1e-46"], "nothing closer to 0 than 1e-12"),
        (["--seed", "9007199254740993"], "--seed is 9007199254740993; accepted"),
        (["--checkpoint", "best", "--newest"], "--newest"),
        (["--checkpoint", "checkpoints/harbor/checkpoint_step_10.pt", "--run", "harbor"], "one of the two"),
    ],
)
def test_bad_input_is_one_sentence(folder, arguments, words, monkeypatch, capsys):
    from mamba_tui.cli.main import main

    monkeypatch.chdir(folder)
    (folder / "binary").write_bytes(b"a\xff\x00")
    try:
        code = main(["generate", *arguments])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert words in error


def test_a_prompt_that_is_too_long_is_not_cut(folder, monkeypatch, capsys):
    from mamba_tui.cli import generate as command_module
    from mamba_tui.cli.main import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr(command_module, "LONGEST_PROMPT", 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("four"))
    assert main(["generate"]) == 2
    assert "more than 3 characters" in capsys.readouterr().err


def test_another_encoding_gets_what_it_can_express(folder):
    done = generate(folder, "--prompt", "é漢\t", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout) == (0, b"\xe9?\t\t\t\t\n")


def test_bytes_that_are_no_text_are_read_as_such(folder):
    done = generate(folder, "--prompt", b"a\xff")
    assert (done.returncode, done.stdout) == (0, b"a\xff\t\t\t\n")


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(folder, redirection):
    done = shell(folder, redirection, "--prompt", "ab")
    assert done.returncode == 0
    if ">&-" not in redirection:
        assert done.stdout == b"ab\t\t\t\n"


def test_a_broken_pipe_ends_quietly(folder):
    done = shell(folder, "| head -c 1", "--prompt", "ab", "--max-new-tokens", "1000000")
    assert done.stdout == b"a"
    assert not any(word in done.stderr for word in (b"Error", b"Broken", b"tokens/s"))


def test_a_checkpoint_carried_alone_is_loaded_with_a_warning(folder, tmp_path):
    alone = tmp_path / "model.pt"
    alone.write_bytes((folder / "checkpoints/harbor/checkpoint_step_10.pt").read_bytes())
    done = generate(folder, "--checkpoint", str(alone), "--prompt", "ab")
    assert (done.returncode, done.stdout) == (0, b"ab\t\t\t\n")
    assert b"warning: model.pt has no manifest beside it" in done.stderr
    known = generate(folder, "--checkpoint", "checkpoints/harbor/checkpoint_step_20.pt", "--prompt", "ab")
    assert b"warning" not in known.stderr


class Terminal:
    """The command on a pseudo-terminal, with typing."""

    def __init__(self, folder, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(folder), stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def until(self, words):
        """Everything that is shown up to these words."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.shown:
            assert time.monotonic() < deadline, f"waited in vain for {words!r}; shown: {self.shown!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.shown += os.read(self.master, 1 << 16).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(words)
        return before

    def type(self, text):
        self.until("> ")
        os.write(self.master, text.encode())


def test_a_conversation_on_a_terminal(folder):
    terminal = Terminal(folder)
    terminal.type("a\x1b[200~b\nc\x1b[201~\r")  # a paste as terminals mark it
    shown = terminal.until("length reached after 3 tokens")
    assert "\t\t\t" in shown
    terminal.until("Enter continues")
    terminal.type("d\ne\rf\r")  # a paste that is not marked
    terminal.until("length reached after 3 tokens")
    terminal.type("/temperature 101\r")
    terminal.until("/temperature is 101; accepted: a number from 0 to 100")
    terminal.type("/length 2\r")
    terminal.until("length is 2;")
    terminal.type("/seed 5\r")
    terminal.until("seed is 5;")
    terminal.type("/stop  \t \r")
    terminal.until("stop: nowhere")
    terminal.type("/dance\r")
    terminal.until("/dance is not a command; /help lists them")
    terminal.type("/help\r")
    terminal.until("/repetition-penalty")
    terminal.type("\r")  # goes on with the text
    assert "seed 5" in terminal.until("Enter continues")
    terminal.type("/new\r")
    terminal.until("started a new text")
    terminal.type(" /not a command\r")
    assert "after 2 tokens" in terminal.until("Enter continues")
    terminal.type("/quit\r")
    assert terminal.process.wait(PATIENCE) == 0
    os.close(terminal.master)
