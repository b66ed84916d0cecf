"""Figure 4 of the paper (4.5.1): accuracy as a function of how often the crop shows what was looked for.

A given box is *accurate* when it lies where the model asked (IoU of at least 0.5 with the asked box) and the
model asked for an object of the question (IoU above ``ON_OBJECT_IOU`` with a gold box). Without gold boxes
the model's own boxes are taken as accurate, as the paper must have done. The share of boxes that miss follows
from the wanted accuracy and the model's own; what was really reached is measured and is the x axis.

Every box of an attempt may be made to miss, but only first crops count for grounding accuracy: that a model
looks again after a crop that missed is an outcome, not a setting.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from models.analyses import tables
from models.analyses.measuring import ALL, Asking, Attempt, Group, Source, measure_full
from models.config import CorruptionWay
from models.corruption import SAME_PLACE_IOU
from models.errors import ScoringError
from models.evaluation.metrics import ON_OBJECT_IOU, wilson_interval
from models.evaluation.results import Estimate, Frozen
from models.evaluation.variants import level_variant
from models.region import Box


class Point(Frozen):
    """One measurement. ``level`` is the wanted grounding accuracy, None where the boxes were left alone.

    ``grounding`` is the share of first crops that are accurate, over ``num_crops`` questions with a crop;
    ``all_crops`` that of all crops. ``on_object`` is the share of first crops that lie on an object of the
    question, wherever they were asked; None without gold boxes.
    """

    set: str
    questions: str
    way: CorruptionWay
    level: float | None
    grounding: Estimate
    num_crops: int
    all_crops: float
    on_object: float | None
    accuracy: Estimate
    num_scored: int
    num_unscored: int


@dataclass(frozen=True, slots=True)
class GivenBox:
    """A crop command that was answered: where the model asked to look, and where the crop was cut."""

    asked: Box
    given: Box
    golds: tuple[Box, ...]
    is_first: bool

    @property
    def is_accurate(self) -> bool:
        """The crop lies where it was asked, and an object of the question was asked for."""
        return self.given.iou(self.asked) >= SAME_PLACE_IOU and (not self.golds or self._is_on(self.asked))

    @property
    def is_on_object(self) -> bool:
        """The crop lies on an object of the question, by luck or not."""
        return self._is_on(self.given)

    def _is_on(self, box: Box) -> bool:
        return any(box.iou(gold) > ON_OBJECT_IOU for gold in self.golds)


def measure(
    source: Source, model_path: str, *, levels: Sequence[float], ways: Sequence[CorruptionWay]
) -> list[Point]:
    """The points of a set: for each way the levels below the model's own accuracy, and that itself.

    Raises ScoringError when the model asked for no crop: there is no box to move then.
    """
    full = measure_full(source, model_path)
    own = grounding(given_boxes(full[0].attempts), of=source.name)
    variants = {
        (level, way): level_variant(level, way) for way in ways for level in levels if level < own.value
    }
    askings = [Asking.of(variant, model_path, own_accuracy=own.value) for variant in variants.values()]
    measured = source.measure(askings) if askings else {}
    points: list[Point] = []
    for way in ways:
        for level in sorted(levels):
            if (level, way) in variants:
                points += _points(source.name, measured[variants[level, way].name], way, level)
        points += _points(source.name, full, way, None)
    return points


def given_boxes(attempts: Sequence[Attempt]) -> list[GivenBox]:
    """Every answered crop command; where gold boxes are known, of the questions that have some."""
    are_known = any(attempt.golds for attempt in attempts)
    return [
        GivenBox(asked, crop.box, attempt.golds, is_first=index == 0)
        for attempt in attempts
        if attempt.transcript is not None and (attempt.golds or not are_known)
        for index, (asked, crop) in enumerate(
            zip(attempt.transcript.accepted_boxes, attempt.transcript.crops, strict=True)
        )
    ]


def grounding(boxes: Sequence[GivenBox], *, of: str) -> Estimate:
    """Grounding accuracy with its Wilson interval. Raises ScoringError when there is no box."""
    firsts = [box.is_accurate for box in boxes if box.is_first]
    if not firsts:
        raise ScoringError(
            f"{of}: the model asked for no crop, so no box can be moved. Give a model that looks again "
            "(--model); `vlm-r3 rgrpo` trains one."
        )
    return wilson_interval(sum(firsts), len(firsts))


def to_csv(points: Sequence[Point]) -> str:
    """One line per point, shares from 0 to 1."""
    return tables.to_csv(
        {
            "set": point.set,
            "questions": point.questions,
            "way": point.way,
            "level": point.level,
            "grounding_accuracy": point.grounding.value,
            "grounding_low": point.grounding.low,
            "grounding_high": point.grounding.high,
            "crops": point.num_crops,
            "all_crops_accuracy": point.all_crops,
            "on_object": point.on_object,
            "accuracy": point.accuracy.value,
            "accuracy_low": point.accuracy.low,
            "accuracy_high": point.accuracy.high,
            "scored": point.num_scored,
            "unscored": point.num_unscored,
        }
        for point in points
    )


def to_text(points: Sequence[Point]) -> str:
    """The points for a terminal, in percent."""
    header = f"{'set':20} {'questions':10} {'way':8} {'wanted':>7} {'grounding':>9}  accuracy, 95 % interval"
    lines = [header]
    for point in points:
        wanted = "own" if point.level is None else f"{100 * point.level:.0f}"
        place = f"{point.set:20} {point.questions:10} {point.way:8} {wanted:>7}"
        found = point.accuracy
        interval = f"[{100 * found.low:.1f}, {100 * found.high:.1f}], n = {point.num_scored}"
        lines.append(f"{place} {100 * point.grounding.value:9.1f}  {100 * found.value:.1f} {interval}")
    return "\n".join(lines) + "\n"


def _points(name: str, groups: Sequence[Group], way: CorruptionWay, level: float | None) -> Iterator[Point]:
    """A point per group in which boxes were given; where gold boxes are known, in which there are some."""
    are_known = _has_gold(groups[0])
    for group in groups:
        boxes = given_boxes(group.attempts) if _has_gold(group) == are_known else []
        if not boxes and group.name != ALL:
            continue
        yield Point(
            set=name,
            questions=group.name,
            way=way,
            level=level,
            grounding=grounding(boxes, of=name),
            num_crops=sum(box.is_first for box in boxes),
            all_crops=fmean(box.is_accurate for box in boxes),
            on_object=fmean(box.is_on_object for box in boxes if box.is_first) if are_known else None,
            accuracy=group.accuracy,
            num_scored=len(group.values),
            num_unscored=len(group.attempts) - len(group.values),
        )


def _has_gold(group: Group) -> bool:
    return any(attempt.golds for attempt in group.attempts)
