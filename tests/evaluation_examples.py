"""Questions, attempts and results of an evaluation, with numbers small enough to work out by hand."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from models.config import Look, Style
from models.engine import ScriptedEngine
from models.evaluation.predictions import Prediction, score, write_predictions
from models.evaluation.report_inputs import Check, Fact, Panel, Promotion, ReportInputs, StageTime
from models.evaluation.results import Comparison, Estimate, Results, SampledScores, Scores, VariantResult
from models.records import Question, write_questions
from models.region import Box
from models.rollout import rollout
from models.trajectory import GenerationRequest, Piece, SampledSpan

# A 448-pixel picture is seen at 112 pixels, as in the tiny preset: 4 original pixels per seen pixel.
LOOK = Look(
    min_pixels=3136,
    max_pixels=12544,
    max_crops=3,
    max_turns=8,
    max_sampled_tokens=400,
    min_side=4,
    repeated_iou=0.7,
)

# Pieces of a trajectory: on the gold box and right; elsewhere and wrong; a refused box and wrong.
RIGHT = ('<think>I look {"bbox_2d": [10, 10, 20, 20]}', " It says K7.</think><answer>K7</answer>")
WRONG = ('<think>I look {"bbox_2d": [60, 60, 80, 80]}', " It says T1.</think><answer>T1</answer>")
REFUSED = ('<think>{"bbox_2d": [20, 20, 10, 10]}', "</think><answer>K1</answer>")


class BrokenEngine(ScriptedEngine):
    """Every request fails on our side, as when a device is lost."""

    def __init__(self) -> None:
        super().__init__(lambda request: "")

    def _answer(self, request: GenerationRequest) -> Piece:
        return Piece(request.request_id, SampledSpan("", (), ()), "error", "lost the device")


def make_question(id: str = "q0", *, kind: str = "read", answer: str = "K7", num_gold: int = 1) -> Question:
    """A question about a picture with a blue card; its gold box is (10, 10, 20, 20) in seen pixels."""
    image = Image.new("RGB", (448, 448), (200, 210, 190))
    image.paste((35, 60, 215), (40, 40, 80, 80))
    image.paste((215, 30, 30), (240, 40, 280, 80))
    question = Question.of_image(image, "what code is on the blue card?", id=id, answers=[answer])
    boxes = (Box(40, 40, 80, 80, "original"), Box(240, 40, 280, 80, "original"))[:num_gold]
    return replace(question, kind=kind, split="test", gold_boxes=boxes)


def make_prediction(
    *pieces: str,
    question: Question | None = None,
    style: Style = "look-again",
    temperature: float = 0.0,
    sample_index: int = 0,
    look: Look = LOOK,
) -> Prediction:
    """A scored attempt that went through the loop, over a script of pieces; without a piece, we break."""
    asked = make_question() if question is None else question
    script = iter(pieces)
    engine = ScriptedEngine(lambda request: next(script)) if pieces else BrokenEngine()
    (trajectory,) = rollout(engine, [asked], look=look)
    trajectory = replace(trajectory, sample_index=sample_index)
    return score(trajectory, asked, style=style, temperature=temperature, budget=look.budget)


def estimate(value: float) -> Estimate:
    """A number with an interval of plus and minus 0.04."""
    return Estimate(value=value, low=value - 0.04, high=value + 0.04)


def make_scores(accuracy: float, *, num: int = 600, unscored: int = 0, looks: bool = True) -> Scores:
    """Scores around an accuracy; a variant that does not look has no crops."""
    return Scores(
        num_scored=num - unscored,
        num_unscored=unscored,
        num_correct=round(accuracy * (num - unscored)),
        accuracy=estimate(accuracy),
        format_rate=0.984,
        protocol_error_rate=0.01,
        truncation_rate=0.02,
        crops_per_question=1.07 if looks else 0.0,
        look_rate=0.99,
        first_box_on_object=0.943,
        first_box_iou=0.713,
        first_box_coverage=0.83,
        gold_recall=0.88,
        crops_with_answer=0.91,
        crop_width=13.2 if looks else None,
        crop_height=9.4 if looks else None,
        crop_tokens=9.46 if looks else None,
        tokens_per_question=31.5,
        seconds_per_question=0.25,
    )


def make_variant(name: str, label: str, accuracy: float, **changes: object) -> VariantResult:
    """One row: ``read`` scores 2 points above the whole, ``add`` 30 below, ``where`` 0.9."""
    unscored = int(changes.pop("unscored", 0))  # type: ignore[call-overload]
    fields = {
        "name": name,
        "label": label,
        "style": "look-again",
        "crop_source": "original",
        "model_path": f"runs/{name}/model",
        "model_digest": name,
        "overall": make_scores(accuracy, unscored=unscored),
        "kinds": {
            "read": make_scores(accuracy + 0.02, num=504),
            "add": make_scores(accuracy - 0.3, num=48),
            "where": make_scores(0.9, num=48),
        },
        "sampled": SampledScores(
            num_samples=8, num_questions=100, num_unscored=0, mean=estimate(accuracy - 0.1), format_rate=0.95
        ),
        "seconds": 21.5,
        "tokens_per_second": 900.0,
    }
    return VariantResult.model_validate({**fields, **changes})


def make_results() -> Results:
    """An evaluation with a base, SFT, R-GRPO and one ablation of it; R-GRPO is 15.2 points above SFT."""
    variants = (
        make_variant("base", "base (look-again)", 0.31, sampled=None),
        make_variant("sft", "SFT", 0.59),
        make_variant("rgrpo", "R-GRPO", 0.742),
        make_variant(
            "no_crop",
            "no crop injected",
            0.36,
            crop_source="none",
            model_digest="rgrpo",
            sampled=None,
            overall=make_scores(0.36, num=300, looks=False),
        ),
    )
    comparisons = [
        Comparison(
            new="rgrpo",
            old="sft",
            kind=kind,
            difference=Estimate(value=0.152, low=0.11, high=0.193),
            num_questions=num,
            num_unscored=0,
        )
        for kind, num in {"": 600, "read": 504}.items()
    ]
    return Results(seed=0, questions_digest="d" * 64, variants=variants, comparisons=tuple(comparisons))


def make_report_inputs(folder: Path) -> ReportInputs:
    """Six questions; R-GRPO answers five, SFT the last two; one trajectory has a refused box."""
    questions = [make_question(f"q{i}", kind="add" if i == 5 else "read") for i in range(6)]
    write_questions(folder / "test.parquet", questions)
    attempts = {
        "rgrpo": [make_prediction(*(RIGHT if i else REFUSED), question=q) for i, q in enumerate(questions)],
        "sft": [make_prediction(*(RIGHT if i > 3 else WRONG), question=q) for i, q in enumerate(questions)],
    }
    for name, predictions in attempts.items():
        write_predictions(folder / f"{name}.parquet", predictions)
    return ReportInputs(
        title="VLM-R3: preset tiny, seed 0",
        results=make_results(),
        headline=("rgrpo", "sft"),
        promotion=Promotion(False, "2", ("gain over champion: lower end -0.4 points, not above 0",)),
        look=LOOK,
        questions_path=folder / "test.parquet",
        predictions={name: folder / f"{name}.parquet" for name in attempts},
        facts=(Fact("git commit", "c218138"),),
        validation=(
            Check("boxes lie inside the picture", True),
            Check("no leaked answer", False, "3: a, b, c"),
        ),
        data=(Fact("accepted rationales", "1933", "80.5 %"),),
        stages=(StageTime("sft", 121.4), StageTime("rgrpo", 260.0, "from the cache")),
        sft_metrics=[{"step": 1, "time": 0.0, "sft/loss": 2.0}, {"step": 2, "time": 1.0, "sft/loss": 1.5}],
        rgrpo_metrics=[{"step": 1, "rgrpo/reward": 1.0}, {"step": 1, "rgrpo/reward": 1.25}],
        rgrpo_panels=(Panel("R-GRPO: reward", (("rgrpo/reward", "total"), ("rgrpo/absent", "absent"))),),
    )
