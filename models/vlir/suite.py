"""What must hold for a set: the Great Expectations suite, a part for each table of findings.

The suite is made from the configuration alone, and is kept beside every verdict as ``suite-<digest>.json``:
a set says by which expectations and bounds it was judged.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from models.config import Look, ValidationConfig

if TYPE_CHECKING:  # importing it takes seconds
    from great_expectations.expectations import Expectation

# Changes whenever the same configuration expects something else.
SUITE_VERSION = "vlir-suite/2"
Suites = Mapping[str, Mapping[str, "Expectation"]]

_TRUTHS = (
    "has_id",
    "is_well_formed",
    "steps_take_turns",
    "steps_end_with_a_box",
    "ends_with_answer",
    "boxes_parse",
    "boxes_are_those_in_text",
    "boxes_are_inside",
    "seen_size_follows_look",
    "answer_matches_gold",
    "image_is_intact",
    "was_accepted",
)


def suites(config: ValidationConfig) -> dict[str, "dict[str, Expectation]"]:
    """Expectations by name, for each table: ``columns``, ``files``, ``set``, ``sources``, ``records``."""
    import great_expectations.expectations as gxe

    between = gxe.ExpectColumnValuesToBeBetween
    same = {"column_A": "found", "column_B": "expected"}
    return {
        "columns": {"columns_have_type": gxe.ExpectColumnPairValuesToBeEqual(**same)},
        "files": {"files_have_split": gxe.ExpectColumnPairValuesToBeEqual(**same)},
        "set": {
            "acceptance": between(column="acceptance", min_value=config.min_acceptance),
            "size_drift": between(column="size_drift", max_value=config.max_size_drift),
            "source_drift": between(column="source_drift", max_value=config.max_source_drift),
        },
        "sources": {
            "records_per_source": between(column="num_records", min_value=config.min_records_per_source)
        },
        "records": _record_suite(config),
    }


def suite_text(found: Suites, config: ValidationConfig, look: Look) -> str:
    """The suite as JSON with its version, its bounds, and the software that judges by it."""
    content = {
        "version": SUITE_VERSION,
        "software": {name: version(name) for name in ("great-expectations", "py3langid")},
        "bounds": config.model_dump(mode="json", exclude={"data_docs"}),
        "look": {**look.model_dump(mode="json"), "end_on": sorted(look.end_on)},
        "expectations": {
            table: {name: _plain(expectation) for name, expectation in suite.items()}
            for table, suite in found.items()
        },
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def suite_digest(text: str) -> str:
    """The identity of a suite."""
    return hashlib.sha256(text.encode()).hexdigest()


def suite_name(text: str) -> str:
    """The file that a suite is kept in."""
    return f"suite-{suite_digest(text)[:12]}.json"


def bounds(expectation: "Expectation") -> str:
    """What is expected, in words."""
    kwargs = _plain(expectation)["kwargs"]
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    if "value_set" in kwargs:
        words = " or ".join(str(value).lower() or "none" for value in kwargs["value_set"])
    elif "column_A" in kwargs:
        words = f"{kwargs['column_A']} = {kwargs['column_B']}"
    elif low is not None and high is not None:
        words = f"{low:g} to {high:g}"
    elif low is not None:
        words = f"at least {low:g}"
    elif high is not None:
        words = f"at most {high:g}"
    else:
        words = "unique"
    mostly = kwargs.get("mostly", 1.0)
    return words if mostly == 1.0 else f"{words}, for at least {mostly:.1%}"


def _record_suite(config: ValidationConfig) -> "dict[str, Expectation]":
    """What must hold for every record."""
    import great_expectations.expectations as gxe

    between, within = gxe.ExpectColumnValuesToBeBetween, gxe.ExpectColumnValuesToBeInSet
    return {
        "num_records": gxe.ExpectTableRowCountToBeBetween(min_value=config.min_records),
        "id_is_unique": gxe.ExpectColumnValuesToBeUnique(column="id"),
        "question_length": between(
            column="question_characters",
            min_value=config.min_question_characters,
            max_value=config.max_question_characters,
        ),
        "rationale_length": between(
            column="rationale_characters",
            min_value=config.min_rationale_characters,
            max_value=config.max_rationale_characters,
        ),
        "text_language": within(column="foreign_text", value_set=[""], mostly=config.min_language_share),
        "split_is_train": within(column="split", value_set=["train"]),
        "has_one_answer": within(column="num_answers", value_set=[1]),
        "crops_equal_boxes_in_text": gxe.ExpectColumnPairValuesToBeEqual(
            column_A="num_crops", column_B="num_boxes_in_text"
        ),
        "image_is_not_held_out": within(column="held_out_in", value_set=[""]),
        **{name: within(column=name, value_set=[True]) for name in _TRUTHS},
    }


def _plain(expectation: "Expectation") -> dict[str, Any]:
    found: dict[str, Any] = expectation.configuration.to_json_dict()
    return {"type": found["type"], "kwargs": found["kwargs"]}
