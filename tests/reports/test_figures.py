"""Facts about the charts: what they draw and which mistakes they refuse."""

from __future__ import annotations

import colorsys
import math
from itertools import pairwise

import pytest

from lmlab.reports import Series, bar_chart, funnel_chart, heat_map, line_chart
from lmlab.reports._palette import DARK, LIGHT, REFERENCE_DARK, REFERENCE_LIGHT, light_to_dark


def luminance(color: str) -> float:
    """WCAG 2.2 relative luminance of "#rrggbb"."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_a_few_whole_numbers_have_a_tick_each():
    axes = line_chart([Series("s", [0, 1, 2], [0.5, 1.0, 7.0])], "layer", "load").layout
    assert (axes.xaxis.dtick, axes.yaxis.dtick) == (1, None)
    assert line_chart([Series("s", [0, 500], [1, 2])], "step", "loss").layout.xaxis.dtick is None


def test_every_color_stands_out_from_its_background() -> None:
    assert all(contrast(color, "#ffffff") >= 3 for color in (*LIGHT, REFERENCE_LIGHT))
    assert all(contrast(color, "#191c1f") >= 3 for color in (*DARK, REFERENCE_DARK))


def test_dark_colors_keep_the_hue_of_the_light_ones() -> None:
    def hue(color: str) -> float:
        return colorsys.rgb_to_hls(*(int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)))[0]

    assert all(min(d := abs(hue(light) - hue(dark)), 1 - d) < 0.06 for light, dark in light_to_dark().items())


def test_lines_beyond_the_palette_differ_in_style() -> None:
    figure = line_chart([Series(str(index), [0, 1], [0, index]) for index in range(10)], "x", "y")
    looks = {(trace.line.color, trace.line.dash) for trace in figure.data}
    assert len(looks) == 10


def test_a_band_goes_out_along_its_upper_and_back_along_its_lower_bound() -> None:
    figure = line_chart([Series("s", [1, 2, 3], [2, 3, 4], band=([1, math.nan, 3], [3, 4, 5]))], "x", "y")
    band, line = figure.data
    assert (band.x, band.y) == ((1, 3, 3, 1), (3, 5, 3, 1))
    assert band.fillcolor == line.line.color


def test_a_band_on_a_logarithmic_axis_leaves_out_what_has_no_logarithm() -> None:
    figure = line_chart([Series("s", [0, 1], [1, 2], band=([1, 1], [2, 3]))], "x", "y", log_x=True)
    assert figure.data[0].x == (1, 1)


def test_series_of_unequal_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"'loss' have different lengths: \[2, 1\]"):
        Series("loss", [1, 2], [1])
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 1\]"):
        Series("loss", [1, 2], [1, 2], band=([1, 2], [1]))


@pytest.mark.parametrize(("low", "high"), [(1.5e7, 4e9), (1e-6, 1e3), (1, 10), (1e-300, 1e300)])
def test_logarithmic_axes_have_few_ticks_within_the_data(low: float, high: float) -> None:
    axis = line_chart([Series("s", [low, high], [1, 2])], "x", "y", log_x=True).layout.xaxis
    if axis.tickvals is None:
        assert (math.log10(high) - math.log10(low)) / axis.dtick <= 6
    else:
        assert 2 <= len(axis.tickvals) <= 6
        assert low <= min(axis.tickvals) * 1.01
        assert max(axis.tickvals) <= high * 1.01


def test_a_few_values_of_a_logarithmic_axis_are_its_ticks() -> None:
    def ticks(*values: float) -> object:
        return line_chart([Series("s", values, [0.0] * len(values))], "k", "recall", log_x=True).layout.xaxis.tickvals

    assert ticks(5, 10, 20) == (5, 10, 20)
    assert ticks(8192, 32768, 131072) == (8192, 32768, 131072)
    assert ticks(1000, 1010, 2000) == (1000, 1200, 1400, 1600, 1800, 2000)  # two labels would overlap
    assert ticks(512) == ticks(512, 512) == (512,)
    assert ticks(0.0031, 0.0034, 0.0042) == pytest.approx((0.0035, 0.004))
    assert ticks(0.013, 0.04) == pytest.approx((0.02, 0.03, 0.04))


def test_a_point_at_zero_is_not_cut_by_the_axis() -> None:
    (trace,) = line_chart([Series("s", (1, 2), (0, 0))], "k", "recall").data
    assert trace.mode == "lines+markers"
    assert trace.cliponaxis is False


def test_empty_charts_can_be_drawn() -> None:
    line_chart([], "x", "y", log_x=True, log_y=True)
    bar_chart([], {}, None, "y", None)
    heat_map([], [], [], "x", "y", "z")
    funnel_chart([])


def test_bars_have_the_errors_of_their_group_and_a_labeled_reference() -> None:
    figure = bar_chart(["a", "b"], {"m": [1, 2], "n": [2, 3]}, {"n": [0.1, 0.2]}, "accuracy", ("chance", 0.25))
    assert [trace.error_y.array for trace in figure.data] == [None, (0.1, 0.2)]
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1, line.name, line.line.dash) == (0.25, 0.25, "chance (0.25)", "dash")


def test_categories_may_repeat_and_may_look_like_numbers() -> None:
    figure = bar_chart(["1", "1", "02"], {"m": [1, 2, 3]}, None, "y", None)
    assert figure.data[0].x == (0, 1, 2)
    assert figure.layout.xaxis.ticktext == ("1", "1", "02")


def test_bars_of_the_wrong_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="'m' has 1 value for 2 categories"):
        bar_chart(["a", "b"], {"m": [1]}, None, "y", None)
    with pytest.raises(ValueError, match=r"'m' has 2 values for 1 category\."):
        bar_chart(["a"], {"m": [1]}, {"m": [1, 2]}, "y", None)
    with pytest.raises(ValueError, match="'x', which is not a group; groups: m"):
        bar_chart(["a"], {"m": [1]}, {"x": [1]}, "y", None)


def test_heat_maps_diverge_from_zero_only_with_both_signs() -> None:
    assert heat_map([[-1, 2]], ["a", "b"], ["r"], "x", "y", "z").data[0].zmid == 0
    assert heat_map([[1, 2]], ["a", "b"], ["r"], "x", "y", "z").data[0].zmid is None


def test_a_value_of_a_heat_map_that_is_not_known_is_a_dash() -> None:
    (shown,) = heat_map([[1.0, math.nan]], ["a", "b"], ["r"], "x", "y", "z").data[0].text
    assert list(shown) == ["1", "-"]


def test_a_heat_map_of_one_value_is_colored_from_zero() -> None:
    for value, bounds in ((0, (0, 1)), (0.4, (0, 0.4)), (-2, (-2, 0))):
        drawn = heat_map([[value, value]], ["a", "b"], ["c"], "", "", "").data[0]
        assert (drawn.zmin, drawn.zmax) == bounds


def test_a_heat_map_of_the_wrong_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 x 1 labels"):
        heat_map([[1, 2]], ["a"], ["r", "s"], "x", "y", "z")


def test_heat_maps_label_some_of_many_numbers_and_all_texts() -> None:
    z = [[0.0] * 40]
    assert len(heat_map(z, list(range(40)), ["r"], "x", "y", "z").layout.xaxis.ticktext) == 10
    assert len(heat_map(z, [f"t{i}" for i in range(40)], ["r"], "x", "y", "z").layout.xaxis.ticktext) == 40


def test_funnels_show_counts_and_shares_of_the_first_step() -> None:
    figure = funnel_chart([("read", 2000), ("kept", 500), ("none", 0)])
    assert figure.data[0].text == (" <b>2,000</b>  100.0%", " <b>500</b>  25.0%", " <b>0</b>  0.0%")
    assert [note.text for note in figure.layout.annotations] == ["read", "kept", "none"]
    assert all(y < x for x, y in pairwise(figure.data[0].x))


def test_a_negative_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="'kept' is negative: -1"):
        funnel_chart([("read", 1), ("kept", -1)])
