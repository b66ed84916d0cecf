"""Numbers with the structure that decides how the reference of MathVision rounds and misprints them.

The reference prints a SymPy 1.14 expression that was built without evaluation and lets Python evaluate the
print (``StrPrinter._print_Mul`` in sympy/printing/str.py). The print is faithful but for a product's only
divisor, which loses its brackets

* when the product begins with a negative number: ``-2/0.5`` is printed -2/1/2 and has the value -1.0;
* when it is itself one over something: ``\\frac{1}{2^{-1}}`` is printed 1/1/2 and has the value 0.5.

Published numbers have these values, so they are repeated here. The order of the terms of a sum is not
repeated: it can change the last bit only. Nor is a negative product over a root of one over a whole number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Number = int | float

# Python writes no whole number of more than 4300 digits, 14,285 bits; a gold answer is nowhere near.
MAX_BITS = 14_000


class NotANumberError(ValueError):
    """There is no value, or too large a one."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A number as it was written."""

    fraction: Fraction


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value in brackets or of a function; nothing can happen to it."""

    number: Number


@dataclass(frozen=True, slots=True)
class Power:
    """A base with an exponent; a root is one too, and what stands below a line has the exponent -1."""

    base: "Term"
    exponent: "Term"


@dataclass(frozen=True, slots=True)
class Product:
    """At least two factors in the order in which they were written."""

    factors: tuple["Term", ...]


Term = Exact | Opaque | Power | Product

ONE = Exact(Fraction(1))
MINUS_ONE = Exact(Fraction(-1))
HALF = Exact(Fraction(1, 2))
_MINUS_HALF = Exact(Fraction(-1, 2))


def number_of(term: Term) -> Number:
    """The value that Python finds in the print. Raises NotANumberError, ArithmeticError, ValueError."""
    match term:
        case Exact(fraction):
            return fraction.numerator if fraction.denominator == 1 else _quotient(fraction)
        case Opaque(number):
            return number
        case Power(base, exponent):
            return _power(number_of(base), exponent)
        case Product():
            return _evaluated(_print(term))


def times(left: Term, right: Term) -> Product:
    """One product of both: factors of factors become its own."""
    return Product((*_factors(left), *_factors(right)))


def over(above: Term, below: Term) -> Product:
    """A quotient; neither part is taken apart."""
    return Product((above, Power(below, MINUS_ONE)))


def negated(term: Term) -> Term:
    """A number with the other sign, or minus one times something else."""
    return Exact(-term.fraction) if isinstance(term, Exact) else times(MINUS_ONE, term)


def checked(number: complex) -> Number:
    """A number that is neither complex nor too large to go on with."""
    if isinstance(number, int | float):
        if isinstance(number, int) and number.bit_length() > MAX_BITS:
            raise NotANumberError("The number is too large.")
        return number
    raise NotANumberError("The number is complex.")


# A printed product: numbers, each with whether it is divided by. The first never is.
_Print = list[tuple[bool, Number]]


def _print(product: Product) -> _Print:
    factors = product.factors
    is_negative = _is_negative(product)
    # Such a product is printed factor by factor; others have their fractions on one line.
    is_literal = factors[0] == ONE or any(
        isinstance(factor, Exact) or _is_whole_power(factor) for factor in factors[1:]
    )
    above: list[Number] = []
    below: list[Term] = []
    for factor in factors:
        if isinstance(factor, Power) and _is_negative(factor.exponent):
            below.append(_inverse(factor))
        elif isinstance(factor, Exact) and not is_literal:
            if factor.fraction.numerator != 1:
                above.append(factor.fraction.numerator)
            if factor.fraction.denominator != 1:
                below.append(Exact(Fraction(factor.fraction.denominator)))
        else:
            above.append(number_of(factor))
    printed = [(False, number) for number in above or [1]]
    if len(below) == 1:
        return printed + _divisor(below[0], is_negative=is_negative, is_literal=is_literal)
    return [*printed, (True, _evaluated([(False, number_of(term)) for term in below]))] if below else printed


def _divisor(term: Term, *, is_negative: bool, is_literal: bool) -> _Print:
    """The only divisor of a product, as Python reads it where its brackets are lost."""
    if isinstance(term, Exact) and is_negative and term.fraction > 0:
        return [(True, term.fraction.numerator), (True, term.fraction.denominator)]
    if isinstance(term, Product) and is_negative and is_literal and not _is_negative(term):
        (_, first), *rest = _print(term)
        return [(True, first), *rest]
    if isinstance(term, Power) and is_literal and term.exponent in (MINUS_ONE, _MINUS_HALF):
        return [(True, 1), (True, number_of(_inverse(term)))]
    return [(True, number_of(term))]


def _evaluated(printed: Sequence[tuple[bool, Number]]) -> Number:
    found = printed[0][1]
    for divides, number in printed[1:]:
        found = checked(found / number if divides else found * number)
    return found


def _inverse(power: Power) -> Term:
    if power.exponent == MINUS_ONE:
        return power.base
    match power.exponent:
        case Product((Exact(first), *rest)):
            return Power(power.base, Product((Exact(-first), *rest)))
        case exponent:
            return Power(power.base, negated(exponent))


def _is_negative(term: Term) -> bool:
    """True when a number is below zero, or a product begins with such a number."""
    first = term.factors[0] if isinstance(term, Product) else term
    return isinstance(first, Exact) and first.fraction < 0


def _is_whole_power(term: Term) -> bool:
    return isinstance(term, Power) and all(
        isinstance(part, Exact) and part.fraction.denominator == 1 for part in (term.base, term.exponent)
    )


def _factors(term: Term) -> tuple[Term, ...]:
    return term.factors if isinstance(term, Product) else (term,)


def _power(base: Number, exponent: Term) -> Number:
    if exponent == HALF:
        return math.sqrt(base)
    if exponent == _MINUS_HALF:
        return 1 / math.sqrt(base)
    if exponent == MINUS_ONE:
        return 1 / base
    size = number_of(exponent)
    if (
        isinstance(base, int)
        and isinstance(size, int)
        and abs(base) > 1
        and base.bit_length() * size > MAX_BITS
    ):
        raise NotANumberError("The power is too large.")
    return checked(base**size)


def _quotient(fraction: Fraction) -> float:
    return fraction.numerator / fraction.denominator
