"""LaTeX as the SymPy expression that latex2sympy2 1.9.1 makes of it: nothing is worked out.

lark reads the text by the grammar beside this file (``latex.lark``). What has no value in Python is left out
of it, and names are all one symbol, so that no text of a model is in an expression.

SymPy does work out some things by itself, such as powers with whole exponents when it prints a quotient. So
no power, root or binomial is built before its parts are known to be numbers of a reasonable size.
"""

from functools import cache
from importlib import resources

import sympy
from lark import Lark, Token, Transformer, UnexpectedToken, v_args
from sympy import Basic, Expr

from models.benchmarks.arithmetic import NotANumberError, number_of

# n things out of m are worked out, one factor after the other.
MAX_BINOMIAL = 1000

_INVERTIBLE = ("sin", "cos", "tan", "sinh", "cosh", "tanh")
_NAME = sympy.Symbol("name")

# What stands raised after "^" or lowered after "_", under its name.
Mark = tuple[str, tuple[Expr, ...]]


def expression_of(latex: str) -> Basic:
    """The expression with which a text in lower case begins; what follows it may be anything.

    Raises LarkError for a text that begins with no expression, NotANumberError for one without a value, and
    what :func:`models.benchmarks.arithmetic.number_of` raises.
    """
    parser = _parser().parse_interactive(latex)
    try:
        for _ in parser.iter_parse():
            pass
    except UnexpectedToken:
        # Like the reference: whoever has read an expression stops before a word that does not continue it.
        pass
    return parser.feed_eof()


def printed(expression: Basic) -> str:
    """An expression as Python. The order of terms is as written: to sort them, SymPy works them out."""
    return sympy.sstr(expression, order="none")


@cache
def _parser() -> Lark:
    grammar = resources.files("models.benchmarks").joinpath("latex.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="basic", maybe_placeholders=False, transformer=_Builder())


@v_args(inline=True)
class _Builder(Transformer[Token, Basic]):
    """One method for each rule of the grammar; each builds what latex2sympy2's function for it builds."""

    def start(self, found: Basic) -> Basic:
        return found

    def worthless(self, *_: Basic) -> Basic:
        raise NotANumberError("There is no value, or there are several.")

    def value(self, *found: Basic) -> Basic:
        return found[-1]

    def less(self, left: Basic, right: Expr) -> Basic:
        return sympy.StrictLessThan(left, right, evaluate=False)

    def less_or_equal(self, left: Basic, right: Expr) -> Basic:
        return sympy.LessThan(left, right, evaluate=False)

    def more(self, left: Basic, right: Expr) -> Basic:
        return sympy.StrictGreaterThan(left, right, evaluate=False)

    def more_or_equal(self, left: Basic, right: Expr) -> Basic:
        return sympy.GreaterThan(left, right, evaluate=False)

    def number(self, digits: Token) -> Expr:
        return sympy.Rational(digits.replace(",", ""))

    def percent(self, digits: Token) -> Expr:
        return sympy.Rational(digits.replace(",", "").removesuffix("\\%")) / 100

    def pi(self) -> Expr:
        return sympy.pi

    def tau(self) -> Expr:
        return sympy.Symbol("tau")

    def symbol(self, *_: object) -> Expr:
        return _NAME

    def add(self, left: Expr, right: Expr) -> Expr:
        return sympy.Add(*sympy.Add.make_args(left), *sympy.Add.make_args(right), evaluate=False)

    def subtract(self, left: Expr, right: Expr) -> Expr:
        return self.add(left, self.negate(right))

    def negate(self, found: Expr) -> Expr:
        return -found if found.is_Number else self.multiply(sympy.Integer(-1), found)

    def multiply(self, left: Expr, right: Expr) -> Expr:
        return sympy.Mul(*sympy.Mul.make_args(left), *sympy.Mul.make_args(right), evaluate=False)

    def divide(self, above: Expr, below: Expr) -> Expr:
        return sympy.Mul(above, sympy.Pow(below, -1, evaluate=False), evaluate=False)

    def raise_to(self, base: Expr, raised: Mark, *_: Mark) -> Expr:
        return _power(base, *raised[1])

    def root(self, *found: Expr) -> Expr:
        *degree, base = found
        return _power(base, sympy.S.Half if not degree else _inverse(*degree))

    def factorial(self, found: Expr) -> Expr:
        number_of(f"factorial({printed(found)})")
        return sympy.factorial(found, evaluate=False)

    def floor(self, found: Expr) -> Expr:
        return sympy.floor(found, evaluate=False)

    def binomial(self, total: Expr, chosen: Expr) -> Expr:
        numbers = _whole(total), chosen
        if not chosen.is_Rational or max(map(abs, numbers)) > MAX_BINOMIAL:
            raise NotANumberError("The numbers of a binomial are written as numbers of a reasonable size.")
        return sympy.binomial(*numbers)

    def exponential(self, *raised: Mark) -> Expr:
        return _exponential(*raised[0][1]) if raised else _NAME

    def call(self, name: Token) -> Token:
        return name

    def raised(self, exponent: Expr) -> Mark:
        return "raised", (exponent,)

    def index(self, *found: Expr) -> Mark:
        return "index", found

    def called(self, name: Token, *found: Mark | Expr) -> Expr:
        """A function; an index is the base of a logarithm, and a power may mean the inverse."""
        *marks, argument = found
        after = dict(marks)
        (power,) = after.get("raised", (sympy.S.Zero,))
        function = name.removeprefix("\\").replace("arc", "a").replace("ar", "a")
        if function == "exp":
            called = _exponential(argument)
        elif function == "log":
            (base,) = after.get("index", (sympy.Integer(10),))
            called = sympy.log(argument, base, evaluate=False)
        else:
            is_inverse = power == -1 and function in _INVERTIBLE
            called = getattr(sympy, f"a{function}" if is_inverse else function)(argument, evaluate=False)
            power = sympy.S.Zero if is_inverse else power
        # The reference takes the power 0 for none.
        return called if power == 0 else _power(called, power)


def _power(base: Expr, exponent: Expr) -> Expr:
    # Whatever has no value, or too large a one, is refused before SymPy can begin to work it out.
    number_of(f"({printed(base)})**({printed(exponent)})")
    return sympy.Pow(base, exponent, evaluate=False)


def _inverse(found: Expr) -> Expr:
    return 1 / found if found.is_Rational else sympy.Pow(found, -1, evaluate=False)


def _whole(found: Expr) -> Expr:
    """The number that is written, or else the whole number that it comes to."""
    if found.is_Rational:
        return found
    number = number_of(printed(found))
    if not isinstance(number, int):
        raise NotANumberError("The total of a binomial is whole, or written as a number.")
    return sympy.Integer(number)


def _exponential(exponent: Expr) -> Expr:
    # The reference prints e alone as a name that Python does not know.
    if exponent in (0, 1):
        return _NAME if exponent else sympy.S.One
    return sympy.exp(exponent, evaluate=False)
