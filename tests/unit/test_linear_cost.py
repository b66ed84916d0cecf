"""The judgement on linear cost, on numbers worked out by hand."""

import pytest

from tests.linear_cost import Line, header, plot


def test_a_straight_line_with_a_fixed_part():
    line = Line("step", "rollouts", (1, 2, 4, 8), (3, 4, 6, 10))  # 2 + n
    assert (line.fixed, line.slope, line.r_squared) == pytest.approx((2, 1, 1))
    assert line.growth == pytest.approx((10 / 8) / 3)
    assert line.is_linear
    assert len(header()) > 60
    assert "8: 10" in line.row()


def test_a_square_is_not_linear():
    line = Line("step", "tokens", (1, 2, 4, 8), (1, 4, 16, 64))
    assert line.growth == 8
    assert not line.is_linear


def test_a_plot_has_a_panel_for_each_unit(tmp_path):
    lines = [
        Line("step", "rollouts", (1, 2), (3, 4)),
        Line("update", "rollouts", (1, 2), (1, 2)),
        Line("step", "tokens", (1, 2), (1, 2)),
    ]
    assert plot(lines, tmp_path, "lines") == ["lines.svg", "lines.png"]
    svg = (tmp_path / "lines.svg").read_text()
    assert all(word in svg for word in ("rollouts", "tokens", "update"))
