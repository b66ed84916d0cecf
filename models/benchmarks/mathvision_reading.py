"""The answer that a text gives to a question of MathVision: the authors' reading, quirk for quirk.

Reference: mathllm/MATH-V @a1f5cc3a, evaluation/evaluate.py (``evaluate``) and evaluation/utils.py
(``find_math_answer``, ``_strip_string``). The steps and their order are theirs; some look accidental (a
fraction is repaired only beside a root), but published numbers were made with them.

Takes any text and needs time linear in its length.
"""

_LETTERS = "ABCDE"
_SENTENCES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_BOX = "oxed{"

# What is dropped or replaced, in this order.
_CLEANED = (
    (" ", ""),
    ("\\,", ""),
    ("∞", "\\infty"),
    ("+\\infty", "\\infty"),
    ("\\\\", "\\"),
    ("\n", ""),
    ("\\text", ""),
    ("\\mbox", ""),
    ("bmatrix", "pmatrix"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("{m}^3", ""),
    ("m^3", ""),
    ("{units}", ""),
    ("units", ""),
    ("{km}", ""),
    ("km", ""),
)
_STRIPPED = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
    ("$", ""),
)
_ZEROS = (("\\%", ""), (" .", " 0."), ("{.", "{0."))
# A letter in brackets becomes the letter, in this order.
_BARE = (*((f"({letter})", letter) for letter in "abcde"), *((f"{{{letter}}}", letter) for letter in "abcde"))


def model_answer(prediction: str) -> str:
    """The answer in lower case: a letter, a number, LaTeX, or the whole text when nothing stands out."""
    text = _with_letter_alone(prediction.strip())
    tail = text.split("is ")[-1].rstrip(".")
    if _is_number(tail):
        text = tail
    if _BOX not in text:
        text = _after_sentences(text)
    elif text.count(_BOX) > 1:
        text = "\\boxed{" + text.split(_BOX)[-1]
    answer = _replaced(math_answer(text), _BARE)
    return answer.rstrip(".").lstrip(":").strip()


def math_answer(text: str) -> str:
    """The content of the box, or else the text, after the last "=", without units; in lower case."""
    answer = _boxed(text.lower().replace("{}", ""))
    closing, opening = answer.find("}"), answer.find("{")
    if closing != -1 and (opening == -1 or closing < opening):
        answer = answer[:closing]
    answer = answer.split("=")[-1].split("\\approx")[-1]
    return _stripped(_replaced(answer, _CLEANED))


def _with_letter_alone(text: str) -> str:
    """The letter when the text ends with " B." or " (B).", or its first line is "B", "(B)" or "(B) B"."""
    for letter in _LETTERS:
        ends = (f" {letter}.", f" ({letter}).")
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith(ends) or text.startswith(starts):
            text = letter
    return text


def _after_sentences(text: str) -> str:
    """What follows "the answer is" and the like, up to the end of the line or sentence."""
    for sentence in _SENTENCES:
        for mark in (sentence, sentence.replace("the", "The")):
            _, found, tail = text.rpartition(mark)
            text = tail.strip()
            if found:
                text = text.split("\n")[0].split(". ")[0]
    return text


def _boxed(text: str) -> str:
    """From the first box to the last closing brace, whatever is between; the text when there is none."""
    start, end = text.find(_BOX), text.rfind("}")
    first = start + len(_BOX)
    return text[first:end] if start != -1 and end >= first else text


def _stripped(text: str) -> str:
    text = _replaced(text, _STRIPPED).split("\\text{ ")[0]
    text = _replaced(text, _ZEROS)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    for mark in ("=", "\\approx"):
        if text.count(mark) == 1:
            text = text.split(mark)[-1]
    has_root = "sqrt" in text
    if has_root:
        text = _with_braced_roots(text)
    text = text.replace(" ", "")
    if has_root:
        text = _with_braced_fractions(text)
    return _fraction_of_slash("\\frac{1}{2}" if text == "0.5" else text)


def _with_braced_roots(text: str) -> str:
    first, *rest = text.split("\\sqrt")
    roots = [f"{{{part[0]}}}{part[1:]}" if part and part[0] != "{" else part for part in rest]
    return "\\sqrt".join([first, *roots])


def _with_braced_fractions(text: str) -> str:
    """``\\frac12`` as ``\\frac{1}{2}``; the text as it was when a fraction is cut short."""
    first, *rest = text.split("\\frac")
    fractions = [first]
    for part in rest:
        if part.startswith("{"):
            fractions.append(part)
        elif len(part) < 2:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            fractions.append(f"{{{part[0]}}}{below}")
    return "\\frac".join(fractions)


def _fraction_of_slash(text: str) -> str:
    """``1/2`` as LaTeX when both are whole numbers written as Python writes them."""
    if text.count("/") != 1:
        return text
    above, below = text.split("/")
    try:
        numerator, denominator = int(above), int(below)
    except ValueError:
        return text
    return f"\\frac{{{numerator}}}{{{denominator}}}" if text == f"{numerator}/{denominator}" else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _replaced(text: str, replacements: tuple[tuple[str, str], ...]) -> str:
    for old, new in replacements:
        text = text.replace(old, new)
    return text
