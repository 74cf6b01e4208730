"""The chart: what is drawn where, for every kind of awkward data, and how the view moves."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult
from textual.geometry import Size

from mamba_tui import themes
from mamba_tui.widgets.chart import raster
from mamba_tui.widgets.chart.axes import clock_ticks, duration_ticks, log_ticks, number_ticks, ticks
from mamba_tui.widgets.chart.frame import ChartFrame, Line, Look, Marker, View, value_text, x_extent
from mamba_tui.widgets.chart.line_chart import LineChart


def frame(lines, size=(60, 16), view=None, markers=(), title="Loss"):
    view = View(x_extent(lines)) if view is None else view
    return ChartFrame(Size(*size), title, "", "nothing here", lines, list(markers), view, Look())


def text(chart):
    return [strip.text for strip in chart.strips()]


def dots_of(chart):
    cells, _ = chart.plot
    return int(sum(bin(code).count("1") for code in cells.ravel().tolist()))


def braille_columns(chart):
    cells, _ = chart.plot
    return [index for index in range(cells.shape[1]) if cells[:, index].any()]


def line(x, y, **more):
    return Line("training", np.asarray(x, float), np.asarray(y, float), "#ffffff", **more)


@pytest.mark.parametrize("size", [(60, 16), (20, 6), (12, 4), (5, 2), (1, 1), (3, 1), (200, 60)])
@pytest.mark.parametrize("log", [False, True])
def test_every_size_gives_exactly_its_cells(size, log):
    chart = frame([line(range(100), np.linspace(5, 1, 100))], size, View((0, 99), log_y=log))
    strips = chart.strips()
    assert len(strips) == size[1]
    assert {strip.cell_length for strip in strips} == {size[0]}


def test_five_by_two_cells_still_show_a_falling_curve():
    rows = text(frame([line(range(10), range(10, 0, -1))], (5, 2)))
    assert rows[0][0] != " "
    assert rows[1][-1] != " "
    assert rows[0][-1] == rows[1][0] == " "


def test_no_data_says_so():
    assert any("nothing here" in row for row in text(frame([])))
    assert any("nothing here" in row for row in text(frame([line([1, 2], [math.nan, math.nan])])))


def test_one_point_is_one_dot():
    chart = frame([line([7], [3.0])])
    assert dots_of(chart) == 1


def test_equal_values_are_one_level_line():
    chart = frame([line(range(50), [2.5] * 50)])
    cells, _ = chart.plot
    assert len({index for index in range(cells.shape[0]) if cells[index].any()}) == 1
    assert len(braille_columns(chart)) == chart.plot_width


def test_an_axis_shows_at_least_what_it_is_told_to():
    shares = line(range(10), [40, 60] * 5)
    chart = frame([shares], view=View((0, 9), least=(0, 100)))
    assert chart.y_range == (0, 100)
    assert frame([line(range(10), range(0, 200, 20))], view=View((0, 9), least=(0, 100))).y_range[1] >= 180
    assert frame([shares], view=View((0, 9), least=(0, 100), log_y=True)).y_range[0] > 0
    assert frame([line([1, 2], [math.nan] * 2)], view=View((1, 2), least=(0, 100))).y_range is None


def test_not_a_number_leaves_a_gap_and_a_mark():
    y = np.ones(100)
    y[40:60] = math.nan
    chart = frame([line(range(100), y)])
    columns = braille_columns(chart)
    gap = [column for column in range(chart.plot_width) if column not in columns]
    assert gap, "there is no gap"
    assert 0.35 * chart.plot_width < min(gap)
    assert max(gap) < 0.65 * chart.plot_width
    assert "×" in text(chart)[-2]


def test_infinity_neither_stretches_the_axis_nor_crashes():
    y = np.linspace(3, 2, 100)
    y[50], y[51] = math.inf, -math.inf
    chart = frame([line(range(100), y)])
    assert 1.9 < chart.y_range[0] < chart.y_range[1] < 3.1


def test_what_has_no_logarithm_is_a_gap():
    chart = frame([line(range(4), [-1.0, 0.0, 10.0, 100.0])], view=View((0, 3), log_y=True))
    assert chart.y_range[0] > 0.5
    assert min(braille_columns(chart)) >= chart.plot_width // 2


def test_a_spike_among_a_million_points_is_seen():
    y = np.ones(1_000_000)
    y[123_456] = 50.0
    chart = frame([line(np.arange(1_000_000), y)], (100, 30))
    cells, _ = chart.plot
    column = int(123_456 / 1_000_000 * chart.plot_width)
    filled = int((cells[:, column] > 0).sum())
    assert filled >= cells.shape[0] - 2, "the spike does not reach from bottom to top"
    assert dots_of(chart) < 100 * 30 * 8 / 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60),
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_no_numbers_and_no_size_break_it(values, width, height, log, outliers):
    lines = [line(range(len(values)), values)] if values else []
    view = View(x_extent(lines), log_y=log, ignore_outliers=outliers, crosshair=1.0)
    strips = frame(lines, (width, height), view).strips()
    assert [strip.cell_length for strip in strips] == [width] * height


@pytest.mark.parametrize("width", [20, 21, 24, 40])
@pytest.mark.parametrize("value", [9e27, -9e27, 1e15, 123456789.0, 1e-300])
def test_huge_numbers_leave_room_for_the_plot(value, width):
    chart = frame([line([0, 1], [value, value * 1.0000001])], (width, 6))
    assert chart.plot_width >= width // 2 - 2
    assert dots_of(chart)


def test_values_stand_where_they_belong():
    chart = frame([line([0, 100], [0.0, 10.0])], (60, 20))
    cells, _ = chart.plot
    left = [index for index in range(cells.shape[0]) if cells[index, 0]]
    right = [index for index in range(cells.shape[0]) if cells[index, -1]]
    assert min(left) >= cells.shape[0] - 2
    assert max(right) <= 1
    rows = {float(label): chart.row_of(place) for place, label in chart.y_ticks}
    assert len(rows) >= 3
    assert [rows[value] for value in sorted(rows)] == sorted(rows.values(), reverse=True)


def test_zooming_shows_only_what_is_in_the_range():
    y = np.concatenate([np.full(50, 100.0), np.full(50, 1.0)])
    chart = frame([line(range(100), y)], view=View((60, 90)))
    assert chart.y_range[1] < 2


def test_the_range_behind_a_line_is_drawn_around_it():
    x = np.arange(50.0)
    plain = frame([line(x, np.full(50, 2.0))], view=View((0, 49)))
    banded = frame(
        [line(x, np.full(50, 2.0), low=np.full(50, 1.0), high=np.full(50, 3.0))], view=View((0, 49))
    )
    assert banded.y_range[0] < 1.01
    assert dots_of(banded) > 5 * dots_of(plain)


def test_two_lines_have_two_colors_and_the_last_is_on_top():
    x = np.arange(50.0)
    chart = frame([line(x, np.ones(50)), Line("validation", x, np.ones(50), "#ff0000")])
    _, owner = chart.plot
    assert set(np.unique(owner).tolist()) == {0, 4}


def test_outliers_can_be_left_out_of_the_axis():
    y = np.ones(1000)
    y[::2] = 2.0
    y[500] = 1000.0
    chart = frame([line(range(1000), y)], view=View((0, 999), ignore_outliers=True))
    assert chart.y_range[1] < 3


def test_the_crosshair_reads_the_nearest_point():
    low, high = np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 5.0])
    chart = frame(
        [line([0, 10, 20], [2.0, 3.0, 4.0], low=low, high=high)],
        (80, 12),
        View((0, 20), crosshair=11.0),
        [Marker(11.0, "▲", "#ffffff", "checkpoint, step 11")],
    )
    header = text(chart)[0]
    assert "3.000 (2.00 to 4.00)" in header
    assert "checkpoint, step 11" in header


def test_markers_stand_on_the_axis():
    chart = frame([line(range(100), np.ones(100))], markers=[Marker(50, "▲", "#ffffff", "")])
    axis = text(chart)[-2]
    assert abs(axis.index("▲") - chart.gutter - chart.plot_width // 2) <= 1


def test_markers_outside_the_view_are_not_shown():
    chart = frame([line(range(100), np.ones(100))], view=View((0, 10)), markers=[Marker(50, "▲", "#ffffff")])
    assert "▲" not in "".join(text(chart))


def test_foreign_names_are_made_harmless():
    chart = frame([Line("\x1b[2J[/x]", np.arange(3.0), np.ones(3), "#ffffff")], (80, 10))
    header = text(chart)[0]
    assert "\x1b" not in header
    assert "␛[2J[/x]" in header


@pytest.mark.parametrize(
    ("low", "high", "wanted", "labels"),
    [
        (0, 10, 5, ["0", "2", "4", "6", "8", "10"]),
        (0, 1, 4, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (0, 50_000, 5, ["0", "10k", "20k", "30k", "40k", "50k"]),
        (0, 3e6, 3, ["0", "1M", "2M", "3M"]),
        (-1, 1, 2, ["-1", "0", "1"]),
    ],
)
def test_linear_ticks_are_round(low, high, wanted, labels):
    assert [label for _, label in number_ticks(low, high, wanted)] == labels


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(1, 20))
def test_ticks_are_inside_rising_and_few(low, span, wanted):
    found = number_ticks(low, low + span, wanted)
    places = [place for place, _ in found]
    assert places == sorted(set(places))
    assert len(places) <= wanted + 1
    slack = 1e-6 * max(span, abs(low))
    assert all(low - slack <= place <= low + span + slack for place in places)


def test_log_ticks_are_decades():
    assert [label for _, label in log_ticks(-5, 0, 6)] == ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
    assert {"1", "2", "5", "10"} <= {label for _, label in log_ticks(0, 1, 8)}


def test_time_ticks():
    assert [label for _, label in duration_ticks(0, 300, 5)] == ["0", "1m", "2m", "3m", "4m", "5m"]
    assert [label for _, label in duration_ticks(0, 7200, 4)] == ["0", "30m", "1h", "1h30m", "2h"]
    assert all(label.count(":") == 1 for _, label in clock_ticks(1_800_000_000, 1_800_007_200, 4))
    assert ticks("number", math.nan, 1, 5) == []


def test_values_in_the_legend_have_the_digits_that_matter():
    assert [value_text(value) for value in (2.34567, 0.00123, 1.5e-5, 12345.0, 0.0)] == [
        "2.346", "0.001230", "1.50e-05", "12.3 k", "0",
    ]  # fmt: skip


def test_columns_keep_extremes():
    x, y = np.arange(1000.0), np.sin(np.arange(1000.0))
    low, high = raster.column_extremes(x, y, y, np.linspace(0, 999, 11))
    for column in range(10):
        part = y[(x >= column * 99.9) & (x < (column + 1) * 99.9)]
        assert low[column] == pytest.approx(part.min(), abs=0.05)
        assert high[column] == pytest.approx(part.max(), abs=0.05)


# --------------------------------------------------------------- the widget


class ChartApp(App[None]):
    def get_theme_variable_defaults(self) -> dict[str, str]:
        return themes.fallback_variables(True)

    def compose(self) -> ComposeResult:
        yield LineChart("Loss", id="chart")


async def with_chart(pilot, points=1000):
    chart = pilot.app.query_one(LineChart)
    chart.set_data([line(range(points), np.linspace(5, 1, points))])
    chart.focus()
    await pilot.pause()
    return chart


async def test_keys_zoom_pan_follow_and_reset():
    async with ChartApp().run_test(size=(80, 24)) as pilot:
        chart = await with_chart(pilot)
        await pilot.press("plus")
        first = chart.view
        assert first is not None
        assert first[1] == 999, "zooming in keeps the newest point"
        chart.set_data([line(range(1100), np.linspace(5, 1, 1100))])
        assert chart.view[1] == 1099, "the view follows"
        await pilot.press("left")
        assert not chart.follow
        assert chart.view[1] < 1099
        kept = chart.view
        chart.set_data([line(range(1200), np.linspace(5, 1, 1200))])
        assert chart.view == kept, "a view that was moved stays"
        await pilot.press("f")
        assert chart.follow
        assert chart.view[1] == 1199
        await pilot.press("minus", "minus", "minus")
        assert chart.view is None
        await pilot.press("plus", "plus", "0")
        assert chart.view is None
        assert chart.follow


async def test_keys_log_outliers_and_crosshair():
    async with ChartApp().run_test(size=(80, 24)) as pilot:
        chart = await with_chart(pilot)
        await pilot.press("l", "o", "space")
        assert chart.log_y
        assert chart.ignore_outliers
        assert chart.crosshair == 999
        await pilot.press("left", "left")
        assert 960 < chart.crosshair < 999
        await pilot.press("plus")
        low, high = chart.view
        assert low < chart.crosshair < high
        await pilot.press("space")
        assert chart.crosshair is None


async def test_the_mouse_zooms_drags_and_sets_the_crosshair():
    async with ChartApp().run_test(size=(80, 24)) as pilot:
        chart = await with_chart(pilot)
        await pilot.click(chart, offset=(40, 10))
        assert 400 < chart.crosshair < 600
        await pilot.click(chart, offset=(40, 10))
        assert chart.crosshair is None
        from textual import events

        for kind in (events.MouseScrollUp, events.MouseScrollUp, events.MouseScrollDown):
            chart.post_message(kind(chart, 40, 10, 0, 0, 0, False, False, False))
        await pilot.pause()
        assert chart.view is not None
        before = chart.view
        await pilot.mouse_down(chart, offset=(40, 10))
        await pilot.hover(chart, offset=(60, 10))
        await pilot.mouse_up(chart, offset=(60, 10))
        assert chart.view[0] < before[0]


async def test_zooming_in_for_ever_ends():
    async with ChartApp().run_test(size=(80, 24)) as pilot:
        chart = await with_chart(pilot)
        for _ in range(60):
            chart.zoom(1.6)
        low, high = chart.view
        assert high > low
        chart.render_line(3)


def test_the_crosshair_keeps_the_title_and_has_no_value_beyond_a_series():
    short = Line("short", np.arange(0.0, 11.0), np.full(11, 2.0), "#ffffff")
    long = Line("long", np.arange(0.0, 101.0), np.full(101, 3.0), "#ffffff")
    view = View(x_range=(0.0, 100.0), crosshair=50.0)
    title = text(frame([short, long], size=(80, 12), view=view))[0]
    assert title.startswith("Loss  at 50")
    assert "long 3" in title
    assert "short -" in title
    quiet = View(x_range=(0.0, 100.0), crosshair=50.0, names_x=False)
    assert "at 50" not in text(frame([long], size=(80, 12), view=quiet))[0]
