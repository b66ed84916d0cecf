"""The number that a piece of LaTeX stands for, or none: what MathVision compares at two decimals.

The reference turns the text into a SymPy expression with latex2sympy2 1.9.1, prints it, and lets Python
evaluate the print with ``from math import *``. That runs text of a model as code, and ``9^{9^{9}}`` never
ends. Here a small parser of the same grammar (PS.g4 of that package) computes the value directly: no text is
ever code, time is linear in the length of the text, and numbers are limited in size.

No general LaTeX parser is used, because what the reference makes of a text decides: to it ``2\\frac{3}{4}``
is 2 · 3/4, ``3^\\circ`` is no number, and a text with something after the expression ("3)", "5 rows") is the
expression. latex2sympy2_extended 1.11, the package that succeeds it, reads about one in ten of such texts
otherwise, and tries to work out ``9^{9^{9}}``.

Where we say "no number" although the reference finds one: texts longer than ``MAX_CHARACTERS``, nesting
deeper than ``MAX_DEPTH``, whole numbers of more than ``MAX_BITS`` bits; greatest common divisors, values
substituted with a bar, ``\\operatorname``, ``e`` to a power that is a logarithm or infinite.
"""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from models.benchmarks import latex_tokens as lt
from models.benchmarks.latex_terms import (
    HALF,
    MAX_BITS,
    MINUS_ONE,
    ONE,
    Exact,
    NotANumberError,
    Number,
    Opaque,
    Power,
    Term,
    checked,
    negated,
    number_of,
    over,
    times,
)
from models.benchmarks.latex_tokens import Token, next_token

# An answer that equals a gold one is much shorter.
MAX_CHARACTERS = 300
MAX_DEPTH = 40

_ZERO = Exact(Fraction(0))
# n things of m, in a notation that the reference replaces before it parses.
_PERMUTATION = re.compile(r"\(([a-zA-Z0-9+\-*/\\ ]+?)\)_{([a-zA-Z0-9+\-*/\\ ]+?)}")
_BLANK_COMMANDS = ("\\displaystyle", "\\quad", "\\qquad", "~", "\\,", "$")


def latex_value(latex: str, *, with_functions: bool = True) -> Number | None:
    """The number that LaTeX in lower case stands for, None when there is none. ``1<2`` is 1, ``2<1`` is 0.

    Without functions neither roots nor π have a value.
    """
    return None if len(latex) > MAX_CHARACTERS else _value(latex, with_functions)


@lru_cache(maxsize=8192)
def _value(latex: str, with_functions: bool) -> Number | None:
    try:
        return _Parser(_prepared(latex), with_functions=with_functions).value()
    except (ArithmeticError, ValueError, TypeError):
        return None


def _prepared(latex: str) -> str:
    text = latex.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _PERMUTATION.sub(r"\\frac{(\1)!}{((\1)-(\2))!}", text)
    for command in _BLANK_COMMANDS:
        text = text.replace(command, " ")
    return text


class _Parser:
    """Recursive descent over the reference's grammar; every method reads one rule and gives its value.

    It looks one word ahead and reads no further than it must: like the reference it stops, content, before a
    word that cannot continue the expression, and fails at one that begins something it cannot finish.
    """

    def __init__(self, latex: str, *, with_functions: bool) -> None:
        self._latex = latex
        self._with_functions = with_functions
        self._place = 0
        self._depth = 0
        self._ahead: Token | None = None

    def value(self) -> Number:
        """A chain of comparisons, or a symbol that is set equal to something."""
        found = number_of(self._assigned() if self._peek().kind == lt.SYMBOL else self._sum())
        while self._peek().kind in lt.ORDERS | {"="}:
            sign = self._take().kind
            if sign == "=":
                raise NotANumberError("An equation has no value.")
            found = int(_compared(sign, found, number_of(self._sum())))
        # What follows would make it a list or is a relation without a value.
        if self._peek().kind in (",", ";", lt.WORTHLESS):
            raise NotANumberError("Several values are none.")
        return found

    def _assigned(self) -> Term:
        self._take()
        self._expect("=")
        return self._sum()

    def _sum(self) -> Term:
        found = self._product(with_functions_inside=True)
        while self._peek().kind in ("+", "-"):
            sign = self._take().kind
            right = self._product(with_functions_inside=True)
            right = right if sign == "+" else negated(right)
            found = Opaque(checked(number_of(found) + number_of(right)))
        return found

    def _product(self, *, with_functions_inside: bool) -> Term:
        """Factors with signs of multiplication or division between them, from left to right."""
        found = self._signed(with_functions_inside=with_functions_inside)
        while self._peek().kind in lt.PRODUCTS | lt.QUOTIENTS:
            sign = self._take().kind
            right = self._signed(with_functions_inside=with_functions_inside)
            found = times(found, right) if sign in lt.PRODUCTS else over(found, right)
        return found

    def _signed(self, *, with_functions_inside: bool) -> Term:
        """Factors side by side, after any number of signs; inside a function's bare argument only the first
        may be a function."""
        negative = False
        while self._peek().kind in ("+", "-"):
            negative ^= self._take().kind == "-"
        factors = [self._postfix()]
        while self._begins_factor(with_functions=with_functions_inside):
            factors.append(self._postfix())
        found = factors[-1]
        for factor in reversed(factors[:-1]):
            found = times(factor, found)
        return negated(found) if negative else found

    def _postfix(self) -> Term:
        found = self._power()
        while self._peek().kind in ("!", *lt.TRANSPOSES):
            # A number is its own transpose.
            if self._take().kind == "!":
                found = Opaque(self._called(_factorial, number_of(found)))
        return found

    def _power(self) -> Term:
        found = self._atom()
        while self._peek().kind == "^":
            found = self._raised(found, self._script("^"))
            if self._peek().kind == "_":
                self._script("_")
        return found

    def _script(self, mark: str) -> Term:
        """What stands raised after "^" or lowered after "_": in braces, or a number."""
        self._expect(mark)
        return self._braced() if self._peek().kind == "{" else self._simple(self._take())

    def _simple(self, token: Token) -> Term:
        """A number or π."""
        digits = token.text.replace(",", "")
        match token.kind:
            case lt.NUMBER:
                return Exact(Fraction(digits))
            case lt.PERCENT:
                return Exact(Fraction(digits.removesuffix("\\%")) / 100)
            case "\\pi":
                return Opaque(self._known(math.pi))
        raise NotANumberError(f"{token.text!r} has no value here.")

    def _atom(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotANumberError(f"Nested deeper than {MAX_DEPTH}.")
        found = self._after(self._take())
        self._depth -= 1
        return found

    def _after(self, token: Token) -> Term:
        """What a word begins: a group, a function, a fraction, or a number alone."""
        if token.kind in lt.LEFTS:
            inner = self._take()
            return self._group(inner.kind, before_closing=lt.LEFTS[token.kind])
        if token.kind in lt.OPENING or token.kind in lt.FLOORS:
            return self._group(token.kind)
        if token.kind in lt.FUNCTIONS:
            return self._function(lt.FUNCTIONS[token.kind])
        match token.kind:
            case "e":
                return self._exponential(self._script("^")) if self._peek().kind == "^" else _no_value("e")
            case "\\sqrt":
                return self._root()
            case "\\frac":
                above, below = self._braced(), self._braced()
                return over(above, below)
            case "\\binom" | "\\tbinom" | "\\dbinom":
                above, below = self._braced(), self._braced()
                return Exact(Fraction(_binomial(number_of(above), number_of(below))))
        return self._simple(token)

    def _group(self, opening: str, *, before_closing: str | None = None) -> Term:
        closing = lt.OPENING.get(opening) or lt.FLOORS.get(opening)
        if closing is None:
            raise NotANumberError(f"{opening!r} opens nothing that has a value.")
        found = self._sum()
        if opening == "{" and before_closing is None and self._peek().kind == "\\choose":
            self._take()
            found = Exact(Fraction(_binomial(number_of(found), number_of(self._sum()))))
        if before_closing is not None:
            self._expect(before_closing)
        self._expect(closing)
        return Opaque(self._called(math.floor, number_of(found))) if opening in lt.FLOORS else found

    def _braced(self) -> Term:
        self._expect("{")
        found = self._sum()
        self._expect("}")
        return found

    def _function(self, name: str) -> Term:
        """A function; an index (the base of a logarithm) and a power may stand before its argument."""
        index = power = None
        while self._peek().kind in ("_", "^"):
            if self._peek().kind == "_" and index is None:
                index = self._script("_")
            elif self._peek().kind == "^" and power is None:
                power = self._script("^")
            else:
                break
        argument = self._argument()
        if name == "exp":
            found = self._exponential(argument)
        elif name == "log":
            base = 10 if index is None else number_of(index)
            found = Opaque(self._called(math.log, number_of(argument), base))
        else:
            # Only of these does the power -1 mean the inverse.
            is_inverse = power == MINUS_ONE and name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")
            function: Callable[..., Number] = getattr(math, f"a{name}" if is_inverse else name)
            found = Opaque(self._called(function, number_of(argument)))
            power = None if is_inverse else power
        # The reference takes the power 0 for none.
        return found if power is None or power == _ZERO else self._raised(found, power)

    def _argument(self) -> Term:
        """In parentheses, or else all factors up to the next function, plus or minus."""
        place, ahead = self._place, self._ahead
        left = self._take().kind if self._peek().kind in lt.LEFTS else None
        if self._peek().kind != "(":
            self._place, self._ahead = place, ahead
            return self._product(with_functions_inside=False)
        self._take()
        found = self._sum()
        if self._peek().kind == lt.LEFTS.get(left or "\\left"):
            self._take()
        self._expect(")")
        return found

    def _root(self) -> Term:
        exponent: Term = HALF
        if self._peek().kind == "[":
            self._take()
            degree = self._sum()
            self._expect("]")
            if isinstance(degree, Exact):
                exponent = Exact(1 / degree.fraction)
            else:
                exponent = Opaque(1 / number_of(degree))
        return self._raised(self._braced(), exponent)

    def _raised(self, base: Term, exponent: Term) -> Term:
        if exponent in (HALF, negated(HALF)):
            # Python finds it by a function.
            self._known(0)
        return Power(base, exponent)

    def _exponential(self, exponent: Term) -> Term:
        if exponent == _ZERO:
            return ONE
        if exponent == ONE:
            return _no_value("e")
        return Opaque(self._called(math.exp, number_of(exponent)))

    def _begins_factor(self, *, with_functions: bool) -> bool:
        kind = self._peek().kind
        if kind in (lt.WORTHLESS, lt.SYMBOL):
            raise NotANumberError(f"{self._peek().text!r} has no value.")
        if kind in lt.FUNCTIONS or kind in ("e", "\\sqrt"):
            return with_functions
        others = (lt.NUMBER, lt.PERCENT, "\\pi", "\\frac", "\\binom", "\\tbinom", "\\dbinom")
        return kind in others or kind in lt.OPENING or kind in lt.FLOORS or kind in lt.LEFTS

    def _known(self, number: Number) -> Number:
        if not self._with_functions:
            raise NotANumberError("Neither functions nor π are known.")
        return checked(number)

    def _called(self, function: Callable[..., Number], *arguments: Number) -> Number:
        return self._known(function(*arguments))

    def _peek(self) -> Token:
        if self._ahead is None:
            self._ahead, self._place = next_token(self._latex, self._place)
        return self._ahead

    def _take(self) -> Token:
        token = self._peek()
        self._ahead = None
        return token

    def _expect(self, kind: str) -> None:
        if self._take().kind != kind:
            raise NotANumberError(f"Expected {kind}.")


def _factorial(number: Number) -> Number:
    # The bits of n! are fewer than n times those of n.
    if isinstance(number, int) and number * number.bit_length() > MAX_BITS:
        raise NotANumberError("The factorial is too large.")
    return math.factorial(number)  # type: ignore[arg-type]


def _binomial(total: Number, chosen: Number) -> int:
    if not isinstance(total, int) or not isinstance(chosen, int) or abs(total) > MAX_BITS:
        raise NotANumberError("The numbers of a binomial are whole and of reasonable size.")
    found = math.comb(total, chosen)
    checked(found)
    return found


def _compared(sign: str, left: Number, right: Number) -> bool:
    if sign.startswith(("<", "\\l")):
        return left < right if sign == "<" else left <= right
    return left > right if sign == ">" else left >= right


def _no_value(text: str) -> Term:
    raise NotANumberError(f"{text!r} has no value here.")
