"""Arithmetic is worked out as Python does, and text is never code."""

import math

import pytest

from models.benchmarks.arithmetic import MAX_BITS, NotANumberError, number_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2*3", 7),
        ("-2/1/2", -1.0),
        ("2**-1", 0.5),
        ("2**10", 1024),
        ("(1 < 2) < 3", True),
        ("sqrt(2)*pi", math.sqrt(2) * math.pi),
        ("log(8, 2)", 3.0),
        ("factorial(20)", math.factorial(20)),
        (f"2**{MAX_BITS // 2}/2**{MAX_BITS // 2 - 1}", 2.0),
    ],
)
def test_value(text, value):
    assert number_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "name", "e", "print(1)", "__import__('os')", "(1).real", "[1]", "1 if 1 else 2", "(lambda: 1)()",
        "'1'", "True + 1", "1 and 2", "1 == 1", "1 < 2 < 3", "~1", "7 % 2", "7 // 2", "log(2, base=2)", "2j",
        "(-8)**(1/3)", f"2**{MAX_BITS}", "9**9**9**9", "(-9)**99999", "factorial(99999)",
        "factorial(factorial(factorial(9)))",
    ],
)  # fmt: skip
def test_no_value(text):
    with pytest.raises(NotANumberError):
        number_of(text)


@pytest.mark.parametrize("text", ["pi", "tau", "sqrt(4)", "exp(1)"])
def test_without_functions_none_is_known(text):
    assert number_of(text) > 0
    with pytest.raises(NotANumberError):
        number_of(text, with_functions=False)
