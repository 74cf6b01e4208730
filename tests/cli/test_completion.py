"""The completion scripts, used as a shell uses them."""

import builtins
import subprocess

import pytest

from mamba_tui.cli.main import main

TRY = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_mamba_tui
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mamba-tui tra", {"train"}),
        ("mamba-tui train --data", {"--dataset"}),
        ("mamba-tui train --preset ''", {"book", "original", "shakespeare-char"}),
        ("mamba-tui sweep --res", {"--resume"}),
        ("mamba-tui stop my", {"my run"}),
        ("mamba-tui train --after my", {"my run"}),
        ("mamba-tui data inf", {"info"}),
    ],
)
def test_bash_completes(tmp_path, monkeypatch, capsys, words, expected):
    pytest.importorskip("shtab")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "checkpoints" / "my run"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    result = subprocess.run(
        ["bash", "-c", TRY.format(script=tmp_path / "script", words=words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert set(result.stdout.splitlines()) == expected, result.stderr


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_that_names_the_commands(capsys, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in ("train", "sweep", "generate"):
        assert command in script


def test_without_the_package_it_says_what_to_install(capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "shtab":
            raise ImportError
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["completion", "bash"]) == 2
    assert "mamba-tui[completion]" in capsys.readouterr().err
