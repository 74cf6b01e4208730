"""The selective scan's kernels compared with a float64 loop over time."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import DEVICE, needs_cuda
from tests.ops.reference_ops import double, relative_errors, run_with_gradients, scan_inputs, scan_loop

from core.ops.triton.selective_scan.layout import plan  # isort: skip
from core.ops.triton.selective_scan.operator import _operator, selective_scan_triton  # isort: skip
from core.ops.triton.selective_scan.warp_sums import exchange_assembly, exchange_constraints  # isort: skip

ALL = frozenset(("D", "z", "dt_bias", "h0", "reset"))
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 2e-3}


def compare(seed, shape, chunk=0, dtype=torch.float32, options=ALL, dt_scale=2.0):
    """The largest relative error over outputs and all gradients."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    inputs = scan_inputs(generator, *shape, dtype=dtype, device=DEVICE, options=options, dt_scale=dt_scale)
    wanted = run_with_gradients(scan_loop, double(inputs), seed)
    found = run_with_gradients(selective_scan_triton, inputs, seed, chunk=chunk)
    assert found.keys() == wanted.keys()
    return max(relative_errors(found, wanted).values())


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((2, 11, 33, 16), 0),  # no size fits a block or a warp
        ((1, 16, 32, 16), 0),  # all fit
        ((1, 19, 8, 16), 8),  # three chunks of time
        ((2, 1, 5, 4), 0),
        ((1, 9, 6, 5), 0),  # states are padded
        ((1, 9, 6, 64), 0),
    ],
)
def test_outputs_and_gradients(shape, chunk):
    assert compare(1, shape, chunk) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(dtype):
    assert compare(9, (2, 17, 24, 16), 8, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("options", [frozenset(), frozenset(("z",)), frozenset(("h0", "reset"))])
def test_what_is_left_out(options):
    assert compare(2, (1, 10, 4, 4), options=options) < TOLERANCE[torch.float32]


def test_extreme_step_sizes_give_no_nan():
    assert compare(3, (1, 10, 8, 4), dt_scale=300.0) < 1e-5


def test_rows_of_a_wider_matrix():
    generator = torch.Generator(DEVICE).manual_seed(4)
    inputs = scan_inputs(generator, 1, 9, 6, 4, device=DEVICE)
    wide = torch.randn(1, 9, 16, generator=generator, device=DEVICE)
    wide[..., 3:9] = inputs["x"]
    expected = selective_scan_triton(**inputs)
    found = selective_scan_triton(**inputs | {"x": wide[..., 3:9]})
    assert all(map(torch.equal, found, expected))


def test_carried_state_continues_the_text():
    inputs = scan_inputs(torch.Generator(DEVICE).manual_seed(5), 1, 14, 4, 4, device=DEVICE)
    timed = {name for name, value in inputs.items() if value.ndim >= 2 and value.shape[:2] == (1, 14)}
    whole, last = selective_scan_triton(**inputs)
    state, parts = inputs["h0"], []
    for part in (slice(0, 5), slice(5, 6), slice(6, 14)):
        cut = {name: value[:, part] if name in timed else value for name, value in inputs.items()}
        out, state = selective_scan_triton(**cut | {"h0": state})
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "dtype"), [(frozenset(), torch.float32), (ALL, torch.bfloat16)])
def test_operator_keeps_torch_compiles_rules(options, dtype):
    generator = torch.Generator(DEVICE).manual_seed(6)
    inputs = scan_inputs(generator, 1, 9, 4, 4, dtype=dtype, device=DEVICE, options=options)
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "h0", "reset")
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_operator, (*map(inputs.get, names), 8, True), test_utils=checks)


def test_time_is_cut_only_where_channels_are_few():
    device = torch.device("cpu")  # counts as one processor
    assert plan(1, 4096, 32 * 8, 16, device).chunks == 1
    few = plan(1, 4096, 32, 16, device)
    assert few.chunks > 8
    assert few.chunk * few.chunks >= 4096


@pytest.mark.parametrize("states", [4, 8, 16])
def test_exchange_sums_every_value_once(states):
    """Run the PTX's exchanges in Python: lane l ends with total l * 2 states // 32."""
    lanes = torch.randn(32, 2 * states, dtype=torch.float64)
    assert exchange_constraints(states).count("r") == 3 * states
    held = list(lanes)
    for distance in (16, 8, 4, 2, 1):
        if f"sent, {distance}, 0x1f" not in exchange_assembly(states):
            pytest.fail(f"no exchange over {distance} lanes")
        half = len(held[0]) // 2
        kept = [row[half:] if lane & distance else row[:half] for lane, row in enumerate(held)]
        sent = [row[:half] if lane & distance else row[half:] for lane, row in enumerate(held)]
        if half == 0:
            kept = sent = held
        held = [kept[lane] + sent[lane ^ distance] for lane in range(32)]
    expected = lanes.sum(0)[torch.arange(32) * 2 * states // 32]
    torch.testing.assert_close(torch.cat(held), expected)


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("first", range(0, 100, 10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_random_shapes_on_the_gpu(dtype, first):
    random = torch.Generator().manual_seed(first)
    worst = 0.0
    for seed in range(first, first + 10):
        batch, length, width = (int(torch.randint(1, top, (), generator=random)) for top in (4, 60, 100))
        states = (4, 7, 8, 16, 16, 32, 64)[int(torch.randint(0, 7, (), generator=random))]
        options = frozenset(name for name in sorted(ALL) if torch.rand((), generator=random) < 0.7)
        chunk = (0, 8, 24)[seed % 3]
        worst = max(worst, compare(seed, (batch, length, width, states), chunk, dtype, options))
    assert worst < TOLERANCE[dtype] * 3


@needs_cuda
@pytest.mark.cuda
def test_gradients_are_the_same_every_time():
    generator = torch.Generator("cuda").manual_seed(8)
    inputs = scan_inputs(generator, 8, 96, 256, 16, dtype=torch.bfloat16, device="cuda")
    first, second = (run_with_gradients(selective_scan_triton, inputs, 1, chunk=32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
