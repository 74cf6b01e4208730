"""Which runs are compiled, and where what was compiled is kept."""

from __future__ import annotations

import os

import pytest
import torch

from core.config.files import apply_settings, load_file, save_file
from core.config.schema import build, flat
from core.config.setting import ConfigError
from core.training import compilation as compiling

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONG = {"n_layer": 8, "max_iters": 100_000}


@pytest.fixture
def with_triton(monkeypatch):
    monkeypatch.setattr(compiling, "HAS_TRITON", True)


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, CUDA, True),
        ({}, CPU, False),
        ({"compile": True}, CPU, False),
        ({"compile": False}, CUDA, False),
        ({"capture": False}, CUDA, False),
        ({"capture": False, "compile": True}, CUDA, True),
        ({"max_iters": 1000}, CUDA, False),
        ({"max_iters": 1000, "compile": True}, CUDA, True),
        ({"max_iters": 1000, "gradient_accumulation_steps": 20}, CUDA, True),
    ],
)
def test_who_is_compiled(with_triton, changes, device, expected):
    assert compiling.compiles(build(LONG | changes), device) is expected


def test_without_triton_only_who_asks(monkeypatch):
    monkeypatch.setattr(compiling, "HAS_TRITON", False)
    assert not compiling.compiles(build(LONG), CUDA)
    assert compiling.compiles(build(LONG | {"compile": True}), CUDA)


@pytest.mark.parametrize("given", [True, False, "true", "false", "auto"])
@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_true_and_false_stay_what_they_were(tmp_path, given, suffix):
    config = build({"compile": given})
    expected = given if isinstance(given, str) else str(given).lower()
    assert flat(config)["compile"] == expected
    path = tmp_path / f"a{suffix}"
    save_file(config, path)
    assert load_file(path) == config
    assert ("true" in path.read_text().partition("compile")[2].split("\n")[0]) == (expected == "true")
    assert '"true"' not in path.read_text()
    assert '"false"' not in path.read_text()
    assert apply_settings(build({}), [f"compile={expected}"]) == config


@pytest.mark.parametrize("given", [1, "yes", None])
def test_other_values_are_refused(given):
    with pytest.raises(ConfigError, match='"auto" or "true" or "false"'):
        build({"compile": given})


def test_compiled_kernels_outlive_a_restart(tmp_path, monkeypatch):
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "")  # so that it is put back afterwards
    monkeypatch.delenv(compiling.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling.keep_what_is_compiled()
    folder = os.environ[compiling.CACHE_VARIABLE]
    assert folder == str(tmp_path / "mamba-tui" / "compiled")
    assert os.path.isdir(folder)
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "/chosen/by/the/user")
    compiling.keep_what_is_compiled()
    assert os.environ[compiling.CACHE_VARIABLE] == "/chosen/by/the/user"


def test_a_cache_that_cannot_be_written_is_left_to_torch(tmp_path, monkeypatch):
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "")
    monkeypatch.delenv(compiling.CACHE_VARIABLE)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    compiling.keep_what_is_compiled()
    assert compiling.CACHE_VARIABLE not in os.environ
