"""Table 2, Figure 4 and Figure 5 from attempts small enough to work out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from models.analyses import figure4, figure5, table2
from models.analyses.figure5 import CHAINS, SEEN, Chain
from models.analyses.measuring import ALL, Asking, Attempt, Group
from models.errors import ScoringError
from models.evaluation.predictions import Prediction
from models.region import Box
from tests.evaluation_examples import RIGHT, WRONG, make_prediction, make_question

# The gold box of the examples, and boxes on and off it, in seen pixels.
GOLD = Box(10, 10, 20, 20, "seen")
ELSEWHERE = Box(60, 60, 80, 80, "seen")
ANSWERS = ("<think>I know.</think><answer>K7</answer>",)


def attempt(id: str, *pieces: str, kind: str = "read", golds: tuple[Box, ...] = (GOLD,)) -> Attempt:
    found: Prediction = make_prediction(*pieces, question=make_question(id, kind=kind))
    value = None if found.correct is None else float(found.correct)
    return Attempt(id, kind, value, found.transcript, golds)


class Scripted:
    """A set whose measurements are written down."""

    name = "scripted"

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        self.attempts = attempts
        self.asked: list[Asking] = []

    def measure(self, askings: Sequence[Asking]) -> dict[str, list[Group]]:
        self.asked += askings
        return {asking.name: [Group(ALL, tuple(self.attempts))] for asking in askings}


def test_grounding_accuracy_needs_the_right_question_and_the_right_place() -> None:
    on = Box(10, 10, 20, 22, "seen")
    cases = [
        (on, on, (GOLD,), True),
        (on, ELSEWHERE, (GOLD,), False),  # moved away
        (ELSEWHERE, GOLD, (GOLD,), False),  # lands on the object, but was not asked there
        (ELSEWHERE, ELSEWHERE, (GOLD,), False),  # asked for something else
        (ELSEWHERE, ELSEWHERE, (), True),  # no gold boxes: the model's own are taken as right
    ]
    for asked, given, golds, expected in cases:
        assert figure4.GivenBox(asked, given, golds, is_first=True).is_accurate is expected


def test_levels_below_the_models_own_are_measured_and_those_above_are_not() -> None:
    """Four of five look at the object: 80 %. 90 % cannot be reached, 40 % keeps half of the boxes."""
    attempts = [attempt(f"q{i}", *RIGHT) for i in range(4)] + [attempt("q4", *WRONG)]
    source = Scripted(attempts)
    points = figure4.measure(source, "model", levels=(0.4, 0.9), ways=("replace", "perturb"))
    assert [(asking.name, asking.corruption and asking.corruption.kept_share) for asking in source.asked] == [
        ("full", None),
        ("boxes_40", pytest.approx(0.5)),
        ("boxes_40_perturbed", pytest.approx(0.5)),
    ]
    assert [(point.way, point.level) for point in points] == [
        ("replace", 0.4),
        ("replace", None),
        ("perturb", 0.4),
        ("perturb", None),
    ]
    own = points[1]
    assert (own.grounding.value, own.num_crops, own.accuracy.value) == (0.8, 5, 0.8)
    assert figure4.to_csv(points).splitlines()[2].startswith("scripted,all,replace,,0.8,")


def test_without_a_single_crop_there_is_nothing_to_move() -> None:
    with pytest.raises(ScoringError, match="asked for no crop"):
        figure4.measure(Scripted([attempt("q0", *ANSWERS)]), "model", levels=(0.4,), ways=("replace",))


def test_table_2_compares_every_row_with_the_full_model() -> None:
    class Halved(Scripted):
        def measure(self, askings: Sequence[Asking]) -> dict[str, list[Group]]:
            full = super().measure(askings)
            wrong = [attempt(one.question_id, *WRONG) for one in self.attempts[:2]]
            return full | {"no_crop": [Group(ALL, (*wrong, *self.attempts[2:]))]}

    source = Halved([attempt(f"q{i}", *RIGHT) for i in range(4)])
    rows = table2.measure(source, [Asking("no_crop", "m", crop_source="none"), Asking("full", "m")], seed=0)
    assert [(row.variant, row.accuracy.value, row.difference.value) for row in rows] == [
        ("no_crop", 0.5, -0.5),
        ("full", 1.0, 0.0),
    ]
    assert [row.format_rate for row in rows] == [1.0, 1.0]
    text = table2.to_text(rows)
    assert "w/o interleaved crops" in text
    assert "-50.0 [" in text


def chain(name: str, id: str, seen: Sequence[float]) -> Chain:
    """A chain whose attention on the picture is given, the rest on its own text."""
    shares = np.array([[share, 0.0, 0.0, 1 - share] for share in seen])
    return Chain(name, id, shares)


def test_curves_are_means_over_answers_at_the_same_place() -> None:
    """Two answers of 20 and 40 tokens: a bin of the first has one token, of the second two."""
    short, long = [0.1] * 10 + [0.3] * 10, [0.2] * 20 + [0.4] * 20
    points = figure5.curves([chain(CHAINS[0], "a", short), chain(CHAINS[0], "b", long)], seed=0)
    relative = [one for one in points if (one.axis, one.part) == ("relative", SEEN)]
    assert [one.share for one in relative] == pytest.approx([0.15] * 10 + [0.35] * 10)
    assert {one.num_answers for one in relative} == {2}
    assert all(one.low == pytest.approx(one.share - 0.05) for one in relative)
    absolute = [one for one in points if (one.axis, one.part) == ("absolute", SEEN)]
    assert len(absolute) == 40
    assert absolute[0].share == pytest.approx(0.15)
    # Where only the long answer still goes on.
    assert (absolute[25].share, absolute[25].num_answers) == (pytest.approx(0.4), 1)
    total = sum(one.share for one in points if one.axis == "relative" and one.part != SEEN)
    assert total == pytest.approx(20)


def test_bands_hold_the_mean_and_narrow_with_more_answers() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for num in (8, 128):
        chains = [chain(CHAINS[0], str(i), rng.uniform(0, 1, 20)) for i in range(num)]
        found = [one for one in figure5.curves(chains, seed=0) if one.part == SEEN]
        assert all(one.low <= one.share <= one.high for one in found)
        widths.append(np.mean([one.high - one.low for one in found]))
    assert widths[1] < widths[0] / 2
