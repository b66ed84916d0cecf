"""The number that a piece of LaTeX stands for, or none: what MathVision compares at two decimals.

The reference turns the text into a SymPy expression with latex2sympy2 1.9.1, prints it, and lets Python
evaluate the print with ``from math import *``. That runs text of a model as code, and ``9^{9^{9}}`` never
ends. Here lark reads the text by the same grammar, SymPy builds and prints the same expression
(:mod:`models.benchmarks.latex_expression`), and its numbers are worked out without running anything
(:mod:`models.benchmarks.arithmetic`).

No general LaTeX reader will do, because what the reference makes of a text decides (docs/decisions.md has the
figures). To it ``2\\frac{3}{4}`` is 2 · 3/4, ``3^\\circ`` is no number, a text with something after the
expression ("3)", "5 rows") is the expression, and the print of ``-2/0.5`` is -2/1/2.

Where we say "no number" although the reference finds one: texts longer than ``MAX_CHARACTERS``, whole numbers
of more than ``MAX_BITS`` bits; binomials of irrational numbers, greatest common divisors, values substituted
with a bar, ``\\operatorname``, ``e`` to a power that is a logarithm or infinite. The terms of a sum keep
their order, which can change the last bit.
"""

import re
from functools import lru_cache

from models.benchmarks.arithmetic import Number, number_of

# An answer that equals a gold one is much shorter.
MAX_CHARACTERS = 300

# n things of m, in a notation that the reference replaces before it parses.
_PERMUTATION = re.compile(r"\(([a-zA-Z0-9+\-*/\\ ]+?)\)_{([a-zA-Z0-9+\-*/\\ ]+?)}")
_BLANK_COMMANDS = ("\\displaystyle", "\\quad", "\\qquad", "~", "\\,", "$")


def latex_value(latex: str, *, with_functions: bool = True) -> Number | None:
    """The number that LaTeX in lower case stands for, None when there is none. ``1<2`` is 1, ``2<1`` is 0.

    Without functions neither roots nor π have a value.
    """
    if len(latex) > MAX_CHARACTERS:
        return None
    try:
        return number_of(_printed(latex), with_functions=with_functions)
    except (ArithmeticError, ValueError, TypeError, SyntaxError, RecursionError):
        return None


@lru_cache(maxsize=8192)
def _printed(latex: str) -> str:
    """The print of the expression, empty when there is none."""
    # SymPy takes a second to import.
    from lark import LarkError

    from models.benchmarks.latex_expression import expression_of, printed

    try:
        return printed(expression_of(_prepared(latex)))
    except (LarkError, ArithmeticError, ValueError, TypeError, SyntaxError, RecursionError):
        return ""


def _prepared(latex: str) -> str:
    text = latex.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _PERMUTATION.sub(r"\\frac{(\1)!}{((\1)-(\2))!}", text)
    for command in _BLANK_COMMANDS:
        text = text.replace(command, " ")
    return text
