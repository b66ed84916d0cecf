"""The number that arithmetic written in Python stands for, without running it as code.

Python's own parser reads the text; numbers, signs, comparisons and some functions of the math module are
worked out as Python does, whole numbers exactly. Everything else has no value, and nothing grows too large.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping

Number = int | float

# Python writes no whole number of more than 4300 digits, 14,285 bits; a gold answer is nowhere near.
MAX_BITS = 14_000

_CONSTANTS = {"pi": math.pi, "tau": math.tau}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    name: getattr(math, name)
    for name in (
        *("sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan", "asinh", "acosh", "atanh"),
        *("exp", "log", "sqrt", "floor", "factorial", "gamma"),
    )
}
_OPERATIONS: Mapping[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class NotANumberError(ValueError):
    """There is no value, or too large a one."""


def number_of(text: str, *, with_functions: bool = True) -> Number:
    """The value of an expression; a comparison is 1 or 0. Without functions, not even π is known.

    Raises NotANumberError, ArithmeticError, TypeError, ValueError, SyntaxError or RecursionError.
    """
    return _value(ast.parse(text, mode="eval").body, with_functions)


def _value(node: ast.expr, with_functions: bool) -> Number:
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return _checked(number)
        case ast.Name(name) if with_functions and name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(sign, inner):
            function, operands = _operation(sign), [inner]
        case ast.BinOp(left, sign, right) | ast.Compare(left, [sign], [right]):
            function, operands = _operation(sign), [left, right]
        case ast.Call(ast.Name(name), operands, []) if with_functions and name in _FUNCTIONS:
            function = _FUNCTIONS[name]
        case _:
            raise NotANumberError(f"{type(node).__name__} has no value.")
    numbers = [_value(operand, with_functions) for operand in operands]
    _refuse_growth(function, numbers)
    return _checked(function(*numbers))


def _operation(sign: ast.AST) -> Callable[..., Number]:
    if type(sign) not in _OPERATIONS:
        raise NotANumberError(f"{type(sign).__name__} has no value.")
    return _OPERATIONS[type(sign)]


def _refuse_growth(function: Callable[..., Number], numbers: list[Number]) -> None:
    """Stops before a power or a factorial of whole numbers that would have too many bits."""
    size, *others = (abs(number) if isinstance(number, int) else 0 for number in numbers)
    if function is operator.pow and size > 1:
        bits = size.bit_length() * others[0]
    elif function is math.factorial:
        bits = size * size.bit_length()
    else:
        return
    if bits > MAX_BITS:
        raise NotANumberError("The number is too large.")


def _checked(number: complex) -> Number:
    if not isinstance(number, int | float):
        raise NotANumberError("The number is complex.")
    if isinstance(number, int) and number.bit_length() > MAX_BITS:
        raise NotANumberError("The number is too large.")
    return number
