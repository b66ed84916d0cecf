"""Results of benchmarks as a run leaves them, without a run."""

from models.evaluation.benchmark_results import BenchmarkResults, ModelFacts, SetFacts
from models.evaluation.results import Estimate

SPLITS = {"mme": ("test", 2374), "mmmu": ("validation", 900), "scienceqa": ("ScienceQA-IMG/test", 2017)}


def some_results(
    benchmark: str = "mmmu", *, value: float | None = 50.0, model: dict | None = None, **changes: object
) -> BenchmarkResults:
    """A whole, clean run of one benchmark; ``value`` is what tables print, with an interval of 2 each way."""
    split, num_rows = SPLITS[benchmark]
    facts = {"name": "", "path": "/models/mine", "digest": "d1" * 32, "endpoint": "", "served_model": ""}
    data = {"benchmark": benchmark, "source": "x", "split": split, "num_rows": num_rows, "digest": "s1"}
    data |= {"num_published_rows": num_rows, "is_partial": False, **changes.pop("data", {})}
    number = None if value is None else Estimate(value=value, low=value - 2, high=value + 2)
    values = {
        "data": SetFacts(**data),
        "model": ModelFacts(**{**facts, "engine": "vllm", **(model or {})}),
        "style": "direct",
        "categories": {},
        "seed": 0,
        "scorer": benchmark,
        "scorer_version": "1",
        "primary": "x",
        "num_rows": data["num_rows"],
        "num_scored": data["num_rows"],
        "num_failed": 0,
        "num_unasked": 0,
        "headline_field": "correct",
        "headline": Estimate(value=0.5, low=0.4, high=0.6),
        "table_number": number,
        "metrics": {},
        "metrics_note": "",
        "parse_counts": {},
        "truncation_rate": 0.0,
        "protocol_error_rate": 0.0,
        "format_rate": None,
        "answer_rate": 1.0,
        "crops_per_question": 0.0,
        "tokens_per_question": 3.0,
        "seconds_per_question": 0.1,
    }
    return BenchmarkResults.model_validate({**values, **changes})
