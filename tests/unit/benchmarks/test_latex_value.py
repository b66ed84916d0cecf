"""The value of LaTeX: by hand, or as latex2sympy2 1.9.1, SymPy 1.14 and Python say."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.benchmarks.latex_value import MAX_CHARACTERS, latex_value

VALUES = Path(__file__).parents[2] / "data" / "latex_values.jsonl"
PIECES = r"""
    1 2 0.5 .5 , + - * / ( ) { } [ ] ^ _ ! ' \pi e x d \frac \sqrt \sin \log \left \right | < = ° % \% $
    \choose \binom tr rows \over & \\ \circ ^{ 9^9^9 9^{9^{9}}
"""


@pytest.mark.parametrize(
    ("latex", "value"),
    [
        ("60", 60),
        ("1,234", 1234),
        ("1.0", 1),
        (".5", 0.5),
        ("5\\%", 0.05),
        ("1/4", 0.25),
        ("1:4", 0.25),
        ("12\\div4", 3.0),
        ("{1\\over2}", 0.5),
        ("2^10", 1024),
        ("2^{-2}", 0.25),
        ("2^3^2", 64),  # From left to right: (2^3)^2.
        ("-2^2", -4),
        ("2 3", 6),
        ("2\\frac{3}{4}", 1.5),  # A product, not two and three quarters.
        ("2\\cdot3+4", 10),
        ("10-2-3", 5),
        ("(1+2)(3)", 9),
        ("\\left(3\\right)", 3),
        ("\\{3\\}", 3),
        ("\\frac{\\frac{1}{2}}{4}", 0.125),
        ("\\sqrt{16}", 4.0),
        ("\\sqrt[3]{27}", 3.0),
        ("2\\sqrt{3}+1", 2 * math.sqrt(3) + 1),
        ("3\\pi", 3 * math.pi),
        ("e^{0}", 1),
        ("e^2", math.exp(2)),
        ("\\sin\\frac{\\pi}{6}", 0.5),
        ("\\sin 2\\pi+1", 1.0),
        ("\\sin^{-1}1", math.pi / 2),
        ("\\sin^2 1+\\cos^2 1", 1.0),
        ("\\cos^0\\pi", -1.0),  # The power 0 is taken for none.
        ("\\log100", 2.0),
        ("\\log_2 8", 3.0),
        ("\\lfloor2.5\\rfloor", 2),
        ("5!", 120),
        ("3!^2", 6),  # Reading stops before the power.
        ("\\binom{5}{2}", 10),
        ("{5\\choose2}", 10),
        ("(5)_{2}", 20.0),  # 5!/3!
        ("1<2", 1),
        ("2\\le1", 0),
        ("x=3", 3),
        ("3)", 3),
        ("3}", 3),
        ("5 rows", 5),
        ("5 trees", 5),  # "tr" is a word of its own: the trace.
        ("3'", 3),
        ("x=y=3", 3),
        ("x_{1,2}=3", 3),
        ("\\text{area}=12", 12),
        ("2\\tau", 2 * math.tau),
        ("2^3_n", 8),
        ("\\binom{-5}{2}", 15),
        ("1<2<3", 1),
        # The print of the reference loses the brackets of a divisor.
        ("2/0.5", 4.0),
        ("-2/0.5", -1.0),  # -2/1/2
        ("1-\\frac{3}{1.5}", 0.5),  # 1 - 1*3/3/2
        ("-\\frac{1}{0.5\\pi}", -1 / math.pi / 2),
        ("-\\frac{2}{2*3}", -3.0),  # -2/2*3
        ("-\\pi/0.5", -2 * math.pi),
        ("\\frac{1}{2^{-1}}", 0.5),  # 1/1/2
    ],
)
def test_value(latex, value):
    assert latex_value(latex) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "latex",
    [
        "", " ", "x", "2x", "e", "3 cm", "60 degrees", "3^\\circ", "3°", "50%", "(1,2)", "1,2", "[1,2]",
        "1=1", "3=x", "x+1=3", "\\infty", "|3|", "\\ln2", "\\sqrt2", "\\frac12", "\\frac{1}{0}", "1/0",
        "\\sqrt{-1}",
        "(-8)^{\\frac{1}{3}}", "e^2_1", "2^-1", "2+", "(3", "\\text{3}", "\\gcd(4,6)", "π", "1;2",
        "2.5!", "3,",
    ],
)  # fmt: skip
def test_no_value(latex):
    assert latex_value(latex) is None


@pytest.mark.parametrize(
    "latex", ["9^9^9^9^9", "9^{9^{9}}", "9**9**9", "99999!", "3!!!!", "2^{99999}", "\\binom{99999}{50000}"]
)
def test_large_numbers_are_none(latex):
    assert latex_value(latex) is None


def test_values_of_the_reference():
    # Made-up and mutated answers with what latex2sympy2 1.9.1, SymPy 1.14 and Python make of them, rounded.
    lines = [json.loads(line) for line in VALUES.read_text(encoding="utf-8").splitlines()]
    found = {line["latex"]: latex_value(line["latex"]) for line in lines}
    rounded = {latex: None if number is None else float(round(number, 2)) for latex, number in found.items()}
    assert len(rounded) > 500
    assert rounded == {line["latex"]: line["value"] for line in lines}


def test_whole_numbers_stay_whole_and_quotients_do_not():
    assert repr(latex_value("2.0")) == "2"
    assert repr(latex_value("4/2")) == "2.0"


def test_without_functions_roots_and_pi_have_no_value():
    assert latex_value("\\sqrt{4}", with_functions=False) is None
    assert latex_value("\\pi", with_functions=False) is None
    assert latex_value("\\frac{4}{2}", with_functions=False) == 2.0


def test_text_is_never_code(tmp_path):
    target = tmp_path / "made"
    for code in (
        f"open('{target}','w')",
        "__import__('os').getcwd()",
        "(lambda:1)()",
        "exit()",
        "[].append(1)",
    ):
        assert latex_value(code) is None
    assert not target.exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "latex",
    [
        "\\frac{1}{" * 14 + "999!+" * 10 + "1" + "}" * 14,
        "\\binom{5}{" * 28 + "1" + "}" * 28,
        "\\binom{0.5}{1000}*" * 15 + "1",
        "\\sqrt[9^{9^9}]{" * 9 + "1" + "}" * 9,
        "{" * MAX_CHARACTERS,
        "1" + "!" * (MAX_CHARACTERS - 1),
        "2" + "^1" * ((MAX_CHARACTERS - 1) // 2),
    ],
    ids=lambda latex: latex[:12],
)
def test_hostile_latex_takes_a_moment(latex):
    started = time.process_time()
    latex_value(latex)
    assert time.process_time() - started < 10


def test_long_latex_is_none():
    assert latex_value("1" * (MAX_CHARACTERS + 1)) is None


def test_longest_chains_have_a_value():
    num_signs = (MAX_CHARACTERS - 1) // 2
    assert latex_value("1/" * num_signs + "1") == 1.0
    assert latex_value("1^" * num_signs + "1") == 1
    assert latex_value("1-" * num_signs + "1") == 1 - num_signs


@settings(deadline=None)  # The machine may be busy.
@given(st.text() | st.lists(st.sampled_from(PIECES.split()), max_size=30).map("".join))
def test_any_text_has_one_value_or_none(latex):
    assert repr(latex_value(latex)) == repr(latex_value(latex))
