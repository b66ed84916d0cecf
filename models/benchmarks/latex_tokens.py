"""The words of the LaTeX that MathVision's reference understands.

The reference reads LaTeX with latex2sympy2 1.9.1 (the lexer of its grammar PS.g4). The longest word wins:
``\\pir`` is ``\\pi`` and ``r``, and "10 rows" is a number and the word ``rows``, after which reading stops.
"""

import re
from dataclasses import dataclass

OPENING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\lgroup": "\\rgroup",
    "\\lbrace": "\\rbrace",
    "\\lbrack": "\\rbrack",
}
FLOORS = {"\\lfloor": "\\rfloor", "\\llcorner": "\\lrcorner"}
LEFTS = {"\\left": "\\right", "\\mleft": "\\mright"}

# Names of the functions of Python's math module behind the commands.
FUNCTIONS = {
    "\\sin": "sin",
    "\\cos": "cos",
    "\\tan": "tan",
    "\\sinh": "sinh",
    "\\cosh": "cosh",
    "\\tanh": "tanh",
    "\\arcsin": "asin",
    "\\arccos": "acos",
    "\\arctan": "atan",
    "\\arsinh": "asinh",
    "\\arcosh": "acosh",
    "\\artanh": "atanh",
    "\\arcsinh": "asinh",
    "\\arccosh": "acosh",
    "\\arctanh": "atanh",
    "\\exp": "exp",
    "\\log": "log",
    "\\floor": "floor",
}
PRODUCTS = frozenset({"*", "\\times", "\\cdot"})
QUOTIENTS = frozenset({"/", "\\over", "\\div", ":"})
ORDERS = frozenset({"<", ">", "\\leq", "\\le", "\\leqslant", "\\geq", "\\ge", "\\geqslant"})
TRANSPOSES = frozenset({"'", "^{\\top}"})

# Understood by the reference's parser, but what it makes of them has no value in Python: absolute values,
# the natural logarithm, sums, integrals, matrices, other relations, letters with an accent.
_WORTHLESS = r"""
    | \| \lvert \vert \lceil \ulcorner \lim \int \sum \prod \ln \csc \sec \cot \arccsc \arcsec \arccot \gcd
    \lcm \ceil \max \min \det \mod \mathit \operatorname \in == \equiv != !== \ne \neq \not\equiv \infty
    \partial \emptyset \acute \bar \overline \breve \check \widecheck \dot \ddot \grave \hat \tilde
    \widetilde \vec \overrightarrow \bm \boldsymbol \text \textit \mathbb \mathbin \mathbf \mathcal
    \mathclap \mathclose \mathellipsis \mathfrak \mathinner \mathnormal \mathop \mathopen \mathord
    \mathpunct \mathrel \mathring \mathrlap \mathrm \mathscr \mathsf \mathsterling \mathtt
"""
# Symbols stand for themselves and have no value, except on the left of an equals sign.
_SYMBOLS = r"""
    \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \iota \kappa \lambda \mu \nu
    \xi \omicron \varpi \rho \varrho \sigma \varsigma \tau \upsilon \phi \varphi \chi \psi \omega \wp \nabla
    \bigstar \angle \nexists \diagdown \measuredangle \eth \diagup \sphericalangle \clubsuit \varnothing
    \complement \diamondsuit \imath \triangledown \heartsuit \jmath \triangle \spadesuit \ell \hbar
    \vartriangle \hslash \blacklozenge \lozenge \blacksquare \mho \blacktriangle \sharp \prime \flat \square
    \backprime \natural \surd
"""
# Words that never continue an expression: before them it is complete.
_ENDING = r"""
    \rvert \rceil \urcorner \to \rightarrow \longrightarrow \xrightarrow \leftrightarrow <-> <=> & \\
    \choose . _ arsinh arcsinh arcosh arccosh artanh arctanh gcd lcm floor ceil eye zeros ones cols rows
    diag norm rank trace tr rref hstack vstack orth ortho orthogonal orthogonalize nullspace eig eigen
    diagonalize eigenvals eigenvalues eigenvects eigenvectors svd matrix pmatrix bmatrix vmatrix
"""
_OTHERS = r"+ - ^ ! = , ; e \pi \sqrt \frac \binom \tbinom \dbinom"

# What a word that is none of its own kind belongs to.
NUMBER, PERCENT, SYMBOL, WORTHLESS, END = "number", "percent", "symbol", "worthless", "end"
_OWN_KIND = (
    *OPENING,
    *OPENING.values(),
    *FLOORS,
    *FLOORS.values(),
    *LEFTS,
    *LEFTS.values(),
    *FUNCTIONS,
    *PRODUCTS,
    *QUOTIENTS,
    *ORDERS,
    *TRANSPOSES,
    *_ENDING.split(),
    *_OTHERS.split(),
)
_KINDS = {
    **dict.fromkeys(_WORTHLESS.split(), WORTHLESS),
    **dict.fromkeys(_SYMBOLS.split(), SYMBOL),
    **{word: word for word in _OWN_KIND},
}
_BLANKS = re.compile(r"(?:[ \t\r\n]|\\\$)+")
_NUMBER = re.compile(r"[0-9]*(?:,[0-9]{3})*\.[0-9]+|[0-9]+(?:,[0-9]{3})*")
_WORDS = re.compile("|".join(re.escape(word) for word in sorted(_KINDS, key=len, reverse=True)))
_DIFFERENTIAL = re.compile(r"d[ \t\r\n]*(?:[a-z]|\\[a-z]+)")
_MATRIX = re.compile(r"\\(?:begin|end)\{[pbv]?matrix\}")
_LETTER = re.compile("[a-z]")


@dataclass(frozen=True, slots=True)
class Token:
    """A word of LaTeX: its kind (for most words the word itself) and its text."""

    kind: str
    text: str


def next_token(latex: str, start: int) -> tuple[Token, int]:
    """The first word at or after a place, and the place behind it; an END at the end of the text.

    Raises ValueError at a character that begins no word.
    """
    blanks = _BLANKS.match(latex, start)
    place = blanks.end() if blanks else start
    if place == len(latex):
        return Token(END, ""), place
    found = max(_candidates(latex, place), key=lambda token: len(token.text), default=None)
    if found is None:
        raise ValueError(f"No word begins with {latex[place]!r}.")
    return found, place + len(found.text)


def _candidates(latex: str, place: int) -> list[Token]:
    """The words that may stand at a place; of two of equal length the first is meant."""
    candidates = []
    if word := _WORDS.match(latex, place):
        candidates.append(Token(_KINDS[word[0]], word[0]))
    if number := _NUMBER.match(latex, place):
        percent = latex.startswith("\\%", number.end())
        text = number[0] + "\\%" if percent else number[0]
        candidates.append(Token(PERCENT if percent else NUMBER, text))
    if matrix := _MATRIX.match(latex, place):
        candidates.append(Token(WORTHLESS if matrix[0].startswith("\\begin") else "\\end", matrix[0]))
    for pattern in (_DIFFERENTIAL, _LETTER):
        if symbol := pattern.match(latex, place):
            candidates.append(Token(SYMBOL, symbol[0]))
    return candidates
