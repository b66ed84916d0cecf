"""Charts: right places, right words, and no trouble with flat, short or single data."""

import re
from xml.etree import ElementTree

import pytest

from models.evaluation.charts import Series, Whisker, bar_chart, dot_plot, line_chart


def svg_of(figure: str) -> ElementTree.Element:
    """The figure must be well-formed XML, too."""
    found = ElementTree.fromstring(figure).find("svg")
    assert found is not None
    return found


def test_a_line_runs_from_corner_to_corner_of_the_plot():
    # Ticks of 0..10 are 0, 2, .. 10, those of 0..1 are 0, 0.2, .. 1: the line spans the plot, which is
    # 58..626 wide and 12..216 high.
    figure = line_chart("loss", [Series("a", ((0, 0.0), (10, 1.0)))])
    (path,) = svg_of(figure).findall("path")
    assert path.get("d") == "M58.0 216.0L626.0 12.0"


def test_noisy_lines_are_drawn_raw_and_smoothed():
    points = tuple((float(step), float(step % 2)) for step in range(90))
    paths = svg_of(line_chart("reward", [Series("total", points)])).findall("path")
    assert [path.get("class") for path in paths] == ["raw s0", "line s0"]
    # A mean over seven alternating values is 3/7 or 4/7; the raw line goes from 0 to 1.
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", paths[1].get("d", ""))][10:-10]
    assert max(heights) - min(heights) == pytest.approx((216 - 12) / 7, abs=0.2)


@pytest.mark.parametrize(
    "points", [((1, 0.0),), ((1, 0.7), (2, 0.7)), ((1, -3.0), (2, -3.0)), ((5, 1e-9), (6, 3e-9))]
)
def test_flat_single_and_tiny_values_are_drawn_inside_the_plot(points):
    figure = line_chart("flat", [Series("a", points)])
    numbers = re.findall(r"([\d.]+) ([\d.]+)", svg_of(figure).findall("path")[-1].get("d", ""))
    assert all(58 <= float(x) <= 626 and 12 <= float(y) <= 216 for x, y in numbers)


def test_ticks_of_tiny_values_differ():
    # A mismatch of 1e-12 once had its ticks rounded to the same number.
    svg = svg_of(line_chart("mismatch", [Series("k3", ((1, 0.8e-12), (2, 1.4e-12)))]))
    ticks = [text.text for text in svg.findall("text") if "end" in (text.get("class") or "")]
    assert ticks[:-1] == ["8e-13", "1e-12", "1.2e-12", "1.4e-12"]


def test_a_chart_says_what_it_shows_in_words():
    figure = line_chart("R-GRPO: reward", [Series("total", ((1, 1.5), (2, 2.25), (3, 2.0)))], unit="points")
    label = svg_of(figure).get("aria-label")
    assert label == "R-GRPO: reward, points. total: from 1.5 to 2, lowest 1.5, highest 2.25"


def test_dot_plot_places_values_and_intervals():
    # Ticks of 20..80 are 20, 40, 60, 80 on 170..626: 7.6 px per unit.
    svg = svg_of(dot_plot("accuracy", [Whisker("SFT", 50, 20, 80)]))
    (dot,) = svg.findall("circle")
    (whisker,) = [line for line in svg.findall("line") if line.get("class") == "whisker"]
    assert float(dot.get("cx", "0")) == pytest.approx(398.0)
    assert (whisker.get("x1"), whisker.get("x2")) == ("170.0", "626.0")
    assert "SFT: 50.0 [20.0, 80.0] %" in (svg.get("aria-label") or "")


def test_bars_are_as_long_as_their_counts():
    # 170 px for labels and 110 for numbers leave 360 px for the longest bar.
    svg = svg_of(bar_chart("crops", [("one", 30.0), ("two", 10.0), ("three", 0.0)]))
    assert [float(bar.get("width", "")) for bar in svg.findall("rect")] == [360.0, 120.0, 0.0]
    assert [text.text for text in svg.findall("text")][1::2] == ["30 (75%)", "10 (25%)", "0 (0%)"]
    assert svg.get("aria-label") == "crops. one: 30; two: 10; three: 0"


def test_a_lone_value_is_a_dot():
    assert len(svg_of(line_chart("loss", [Series("a", ((1, 0.5),))])).findall("circle")) == 1


def test_labels_are_escaped():
    assert "<b>" not in bar_chart("<b>", [("<b>", 1.0)])
    assert "<b>" not in dot_plot("a", [Whisker("<b>", 1, 0, 2)])
    assert "<b>" not in line_chart("<b>", [Series("<b>", ((0, 1.0), (1, 2.0)))])


def test_nothing_to_draw_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="no points"):
        line_chart("empty", [Series("a", ())])
    with pytest.raises(ValueError, match="no bars"):
        bar_chart("empty", [])
    with pytest.raises(ValueError, match="no rows"):
        dot_plot("empty", [])
