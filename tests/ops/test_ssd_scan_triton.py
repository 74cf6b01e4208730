"""The kernels of Mamba-2's scan compared with a plain loop in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.kernels import DEVICE, needs_cuda
from tests.ops.reference_ops import double, run_with_gradients
from tests.ops.test_ssd_scan import loop

from core.ops.triton import ssd_scan as module  # isort: skip
from core.ops.triton.ssd_scan import _operator, plan, ssd_scan_triton  # isort: skip

ALL = frozenset(("D", "dt_bias", "h0", "reset"))
NEEDED = ("x", "dt", "A", "B", "C")
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def draw_inputs(seed, batch, length, heads, size, states, dtype=torch.float32, options=ALL, dt_scale=2.0):
    """Random arguments of `ssd_scan`; what a network computes is rounded to `dtype`."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape, like=torch.float32):
        return torch.randn(*shape, generator=generator, device=DEVICE).to(like)

    inputs = {
        "x": normal(batch, length, heads, size, like=dtype),
        "dt": (normal(batch, length, heads) * dt_scale - 2).to(dtype),
        "A": -torch.exp(normal(heads)),
        "B": normal(batch, length, states, like=dtype),
        "C": normal(batch, length, states, like=dtype),
        "D": normal(heads),
        "dt_bias": normal(heads),
        "h0": normal(batch, heads, size, states),
        "reset": torch.rand(batch, length, generator=generator, device=DEVICE) < 0.05,
    }
    return {name: value for name, value in inputs.items() if name in options or name in NEEDED}


def errors_of(inputs, seed=0, **options):
    """The errors of outputs and all gradients, relative to their norms.

    The gradients of A, D and the bias are sums of many terms that cancel: no digits are left to compare
    where they are much smaller than dt's.
    """
    wanted = run_with_gradients(loop, double(inputs), seed)
    found = run_with_gradients(ssd_scan_triton, inputs, seed, **options)
    assert found.keys() == wanted.keys()
    errors = {}
    for name, reference in wanted.items():
        assert found[name].shape == reference.shape
        scale = reference.norm()
        if name in ("grad_A", "grad_D", "grad_dt_bias"):
            scale = torch.maximum(scale, wanted["grad_dt"].norm())
        error = ((found[name].double() - reference).norm() / scale.clamp(min=1e-12)).item()
        errors[name] = error if error == error else float("inf")
    return errors


def compare(inputs, seed=0, **options):
    """The largest error."""
    return max(errors_of(inputs, seed, **options).values())


@pytest.mark.parametrize(
    ("shape", "part_chunks"),
    [
        ((2, 70, 2, 5, 3), 0),  # no size fits a chunk or a tile
        ((1, 64, 3, 16, 16), 0),  # all fit
        ((1, 200, 1, 70, 17), 1),  # four parts of time, two tiles of a head
    ],
)
def test_outputs_and_gradients(shape, part_chunks):
    assert compare(draw_inputs(1, *shape), part_chunks=part_chunks) < TOLERANCE[torch.float32]


@given(
    seed=st.integers(0, 1 << 30),
    length=st.integers(1, 50),
    heads=st.integers(1, 2),
    size=st.integers(1, 40),
    states=st.integers(1, 20),
    options=st.sets(st.sampled_from(sorted(ALL))),
    part_chunks=st.integers(0, 2),
)
@settings(max_examples=7, deadline=None)
def test_random_shapes_in_short_chunks(seed, length, heads, size, states, options, part_chunks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 32)
        patch.setattr(module, "TILE", 32)
        inputs = draw_inputs(seed, 2, length, heads, size, states, options=options)
        assert compare(inputs, seed, part_chunks=part_chunks) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("size", [-200.0, 50.0, 1e4, 1e8])
def test_no_nan_and_no_lost_digits_at_extreme_steps(size):
    inputs = draw_inputs(3, 2, 80, 2, 3, 4)
    inputs["dt"][:, ::7] = size
    inputs["x"][:, ::7] *= min(1, 1 / abs(size))
    found = run_with_gradients(ssd_scan_triton, inputs, 1)
    wanted = run_with_gradients(loop, double(inputs), 1)
    for name in ("out0", "out1"):
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-4, atol=1e-4)
    assert all(value.isfinite().all() for value in found.values())


def test_strong_and_weak_decays_side_by_side_lose_no_digits():
    inputs = draw_inputs(4, 1, 64, 1, 4, 4, options=frozenset())
    inputs["dt"][:, ::5] = 60.0
    inputs["x"][:, ::5] *= 0.01
    errors = errors_of(inputs)
    assert errors.pop("grad_A") < 2e-4  # it multiplies the rests of sums with the large steps
    assert max(errors.values()) < 1e-6


def test_a_reset_forgets_all_before():
    inputs = draw_inputs(5, 1, 100, 2, 4, 4, options=frozenset(("D", "dt_bias", "h0")))
    reset = torch.zeros(1, 100, dtype=torch.bool, device=DEVICE)
    reset[:, 37] = True
    y, last = ssd_scan_triton(**inputs, reset=reset)
    timed = ("x", "dt", "B", "C")
    fresh = {name: value[:, 37:] if name in timed else value for name, value in inputs.items()}
    wanted, wanted_last = ssd_scan_triton(**fresh | {"h0": None})
    torch.testing.assert_close(y[:, 37:], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, wanted_last, rtol=1e-5, atol=1e-5)


def test_views_of_wider_matrices():
    inputs = draw_inputs(6, 2, 70, 2, 5, 4)
    wide = torch.randn(2, 70, 22, device=DEVICE)
    wide[..., 1:11] = inputs["x"].flatten(2)
    wide[..., 11:15], wide[..., 15:19] = inputs["B"], inputs["C"]
    wide[..., 20:22] = inputs["dt"]
    views = {
        "x": wide[..., 1:11].unflatten(2, (2, 5)),
        "B": wide[..., 11:15],
        "C": wide[..., 15:19],
        "dt": wide[..., 20:22],
    }
    assert all(map(torch.equal, ssd_scan_triton(**inputs | views), ssd_scan_triton(**inputs)))


def test_carried_state_continues_the_text():
    inputs = draw_inputs(7, 1, 150, 2, 4, 4)
    whole, last = ssd_scan_triton(**inputs)
    state, parts = inputs["h0"], []
    for part in (slice(0, 50), slice(50, 51), slice(51, 150)):
        timed = ("x", "dt", "B", "C", "reset")
        cut = {name: value[:, part] if name in timed else value for name, value in inputs.items()}
        out, state = ssd_scan_triton(**cut | {"h0": state})
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [frozenset(), ALL])
def test_operator_keeps_torch_compiles_rules(options):
    inputs = draw_inputs(8, 1, 9, 2, 4, 4, options=options)
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "h0", "reset")
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, (*map(inputs.get, names), 0, True), test_utils=checks)


def test_only_the_last_state_is_used():
    inputs = draw_inputs(9, 1, 20, 2, 4, 4)
    inputs = {name: value.requires_grad_(value.is_floating_point()) for name, value in inputs.items()}
    found = torch.autograd.grad(ssd_scan_triton(**inputs)[1].sum(), inputs["x"])[0]
    precise = double({name: value.detach() for name, value in inputs.items()})
    precise["x"].requires_grad_()
    wanted = torch.autograd.grad(loop(**precise)[1].sum(), precise["x"])[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_time_is_cut_only_where_heads_are_few():
    weights = torch.empty(1, 4096, 16, device="cpu")  # counts as one processor
    few = plan(torch.empty(1, 4096, 1, 16, device="cpu"), weights, weights)
    many = plan(torch.empty(8, 4096, 4, 16, device="cpu"), weights, weights)
    assert many.parts == 1
    assert few.parts > 1
    assert few.parts * few.part_chunks >= few.chunks
    assert many.groups == 1


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("first", range(0, 40, 10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_random_shapes_on_the_gpu(dtype, first):
    random = torch.Generator().manual_seed(first)
    worst = 0.0
    for seed in range(first, first + 10):
        batch, length, heads, size = (
            int(torch.randint(1, top, (), generator=random)) for top in (4, 200, 4, 140)
        )
        states = (4, 7, 16, 16, 32, 64, 128)[int(torch.randint(0, 7, (), generator=random))]
        options = frozenset(name for name in sorted(ALL) if torch.rand((), generator=random) < 0.7)
        inputs = draw_inputs(seed, batch, length, heads, size, states, dtype, options)
        worst = max(worst, compare(inputs, seed, part_chunks=seed % 3))
    assert worst < TOLERANCE[dtype] * 2


@needs_cuda
@pytest.mark.cuda
def test_gradients_are_the_same_every_time():
    inputs = draw_inputs(11, 4, 256, 4, 64, 16, torch.bfloat16)
    first, second = (run_with_gradients(ssd_scan_triton, inputs, 1) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
