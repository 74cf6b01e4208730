"""What is wrong on a GPU is left out, once checked, and said; what is right on this one is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda

from core.generation.self_check import check_decoding  # isort: skip
from core.model import MIXERS  # isort: skip
from core.ops import dispatch, positions, self_check  # isort: skip
from core.ops.triton import decode_kernels  # isort: skip
from core.ops.self_check import check, check_kernels  # isort: skip
from core.ops.self_check_cases import CASES, WrongResultError, cases_for, compare  # isort: skip

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known():
    self_check.forget()
    yield
    self_check.forget()


class Counted:
    """A case, and how often it was asked."""

    def __init__(self, error=None):
        self.asked, self.error = 0, error

    def __call__(self, device):
        self.asked += 1
        torch.rand(3)  # must not be seen outside
        if self.error is not None:
            raise self.error


WRONG = WrongResultError("result 1 differs by 40.0%")


def test_what_is_wrong_is_left_out_once_and_said(tmp_path):
    record = tmp_path / "cache" / "kernels" / "sm99.json"
    cases = {
        "causal_conv": Counted(WRONG),
        "mamba_mixer": Counted(),
        "ssd_scan": Counted(RuntimeError("no code for sm_99\nmore")),
        "rotary": Counted(),
    }
    state = torch.get_rng_state()
    said = check(CPU, cases, record)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(said) == 3
    assert "causal_conv are wrong on this GPU (result 1 differs by 40.0%)" in said[0]
    assert "mamba_mixer are wrong on this GPU (causal_conv is a part of it)" in said[1]
    assert "ssd_scan are wrong on this GPU (RuntimeError: no code for sm_99)" in said[2]
    assert all(str(record) in sentence for sentence in said)
    assert dispatch._left_out == ("causal_conv", "mamba_mixer", "ssd_scan")
    # Another process asks nothing again, but hears the same.
    self_check.forget()
    assert check(CPU, cases, record) == said
    assert [case.asked for case in cases.values()] == [1, 1, 1, 1]
    # Only what is new is asked.
    more = cases | {"adamw": Counted(WRONG)}
    assert len(check(CPU, more, record)) == 4
    assert [case.asked for case in more.values()] == [1, 1, 1, 1, 1]
    assert record.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"rotary": 1}', b"9" * 5000, b" " * 100_000]
)
def test_a_damaged_record_is_made_again(tmp_path, content):
    record = tmp_path / "kernels.json"
    record.write_bytes(content)
    case = Counted()
    assert check(CPU, {"rotary": case}, record) == []
    assert case.asked == 1
    assert json.loads(record.read_bytes()) == {"rotary": ""}


def test_a_record_that_cannot_be_kept_costs_only_time(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "bashrc").write_text("alias")
    (tmp_path / "kernels.json").symlink_to(tmp_path / "home" / "bashrc")
    assert check(CPU, {"rotary": Counted()}, tmp_path / "kernels.json") == []
    assert (tmp_path / "home" / "bashrc").read_text() == "alias"
    assert check(CPU, {"rotary": Counted()}, tmp_path / "home" / "bashrc" / "x.json") == []


def test_nothing_is_checked_on_a_cpu_or_interpreted(monkeypatch):
    case = Counted()
    assert check_kernels("cpu", ["mamba"], {"decoding": case}) == []
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert check_kernels("cuda", ["mamba"], {"decoding": case}) == []
    assert case.asked == 0


def test_the_parts_of_what_is_wrong_are_checked_too(monkeypatch, tmp_path):
    """A model asks for the whole alone; where that is left out, its parts are used."""
    parts = {"causal_conv": Counted(), "selective_scan": Counted(WRONG)}
    for name, case in parts.items():
        monkeypatch.setitem(CASES, name, case)
    whole = {"mamba_mixer": Counted(WRONG)}
    said = check(CPU, whole, tmp_path / "kernels.json")
    assert [sentence.split()[3] for sentence in said] == ["mamba_mixer", "selective_scan"]
    assert dispatch._left_out == ("mamba_mixer", "selective_scan")
    check(CPU, whole, tmp_path / "kernels.json")
    assert [case.asked for case in parts.values()] == [1, 1]


def test_only_gpus_that_were_not_tried_are_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(self_check, "HAS_TRITON", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(self_check, "record_of", lambda device: tmp_path / "kernels.json")
    monkeypatch.setattr(self_check, "cases_for", lambda mixers: {})
    case = Counted(WRONG)
    monkeypatch.setattr(self_check, "_kind", lambda device: next(iter(self_check.TRIED)))
    assert check_kernels("cuda", ["mamba"], {"decoding": case}) == []
    monkeypatch.setattr(self_check, "_kind", lambda device: ("sm120", "3.6"))
    monkeypatch.setattr(self_check, "_problem", lambda case, device: "result 1 differs by 9%")
    assert len(check_kernels("cuda", ["mamba"], {"decoding": case})) == 1


@pytest.mark.parametrize("kind", MIXERS)
def test_every_kind_of_layer_has_its_cases(kind):
    names = set(cases_for([kind]))
    assert names <= set(CASES)
    assert names - set(cases_for([]))


def test_what_is_left_out_takes_its_plain_path(monkeypatch, tmp_path):
    class OnCUDA:
        is_cuda, dtype = True, torch.float32

    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    assert dispatch.takes_triton(OnCUDA(), "causal_conv")
    check(CPU, {"causal_conv": Counted(WRONG)}, tmp_path / "kernels.json")
    assert not dispatch.takes_triton(OnCUDA(), "causal_conv")
    assert dispatch.takes_triton(OnCUDA(), "ssd_scan")


def test_every_name_that_is_asked_for_has_a_case():
    asked = set()
    for path in (Path(dispatch.__file__).parents[1]).rglob("*.py"):
        asked |= set(re.findall(r'takes_(?:triton|attention_kernels)\([^"\n]*"(\w+)"\)', path.read_text()))
    assert asked == set(CASES)


@pytest.mark.parametrize("wrong", ["result", "gradient", "nan"])
def test_a_wrong_operation_is_noticed(wrong):
    def operation(x):
        if x.dtype == torch.float64:
            return x * 2
        factor = {"result": x.new_tensor(2.2), "gradient": 2 + 0.2 * x / x.detach() - 0.2, "nan": x / 0 * 0}
        return x * factor[wrong]

    with pytest.raises(WrongResultError, match=r"differs by" if wrong != "gradient" else "the gradient of x"):
        compare(operation, {"x": torch.tensor([1.0, 2.0])}, {}, CPU, torch.float32)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"adamw", "conditional_copy"}))
def test_plain_paths_pass(name):
    """The inputs of a case leave room for rounding. Tests marked cuda show the same of the kernels."""
    CASES[name](CPU)


@pytest.mark.parametrize("name", ["adamw", "conditional_copy", "rotary"])
def test_kernels_pass(monkeypatch, name):
    """Those that the interpreter is quick with, dispatched as on CUDA."""
    monkeypatch.setattr(positions, "takes_triton", lambda tensor, _: tensor.dtype != torch.float64)
    CASES[name](torch.device(DEVICE))


def test_a_wrong_kernel_of_decoding_is_noticed(monkeypatch):
    class Nothing:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    monkeypatch.setattr(decode_kernels, "linear_kernel", Nothing())
    with pytest.raises(WrongResultError, match="the next token's logits differs"):
        check_decoding(torch.device(DEVICE))


@pytest.mark.cuda
@needs_cuda
def test_everything_passes_on_this_gpu_in_time(tmp_path):
    cases = CASES | {dispatch.DECODING: check_decoding}
    assert check(torch.device(DEVICE), cases, tmp_path / "kernels.json") == []
