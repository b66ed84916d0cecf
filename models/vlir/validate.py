"""Stage validate: the gate before any accelerator. A Great Expectations suite over the built records.

:mod:`models.vlir.checks` turns every stored record into a row of plain findings; the suite says what must
hold for all rows. The verdict is a plain value: which expectation failed, how often, and three example ids.

``python -m models.vlir.validate RUN_DIR`` does the same in a process of its own, because Great Expectations
is large: from ``config.json`` (:class:`models.run_config.ValidationRun`) to ``verdict.json``.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import Look, ValidationConfig
from models.errors import ConfigError, VLMR3Error
from models.run_config import ValidationRun
from models.rundir import Result, RunDir, write_atomically
from models.vlir.checks import check_columns, check_records, read_manifest

if TYPE_CHECKING:  # importing these takes seconds
    import pandas as pd
    from great_expectations.expectations import Expectation

log = logging.getLogger(__name__)

VERDICT = "verdict.json"
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class ExpectationOutcome:
    """What one expectation came to. ``unexpected_count`` is the number of rows that break it."""

    name: str
    success: bool
    unexpected_count: int = 0
    example_ids: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ValidationVerdict:
    """Whether the set may be trained on, and why."""

    passed: bool
    num_records: int
    expectations: tuple[ExpectationOutcome, ...]

    @property
    def failures(self) -> tuple[ExpectationOutcome, ...]:
        """The expectations that were not met."""
        return tuple(outcome for outcome in self.expectations if not outcome.success)

    def summary(self) -> str:
        """One line when it passed; otherwise each failing expectation, its count and three example ids."""
        if self.passed:
            return f"{self.num_records} records meet all {len(self.expectations)} expectations."
        lines = [f"The set fails {len(self.failures)} of {len(self.expectations)} expectations:"]
        for outcome in self.failures:
            examples = f", for example {', '.join(outcome.example_ids)}" if outcome.example_ids else ""
            detail = f" ({outcome.detail})" if outcome.detail else ""
            lines.append(f"  {outcome.name}: {outcome.unexpected_count} unexpected{examples}{detail}")
        return "\n".join(lines)

    def metrics(self) -> dict[str, float]:
        """For the tracker; the names are explained in ``docs/metrics.md``."""
        return {
            "validate/passed": float(self.passed),
            "validate/records": self.num_records,
            "validate/expectations": len(self.expectations),
            "validate/failed_expectations": len(self.failures),
            "validate/unexpected": sum(outcome.unexpected_count for outcome in self.expectations),
        }

    def to_json(self) -> str:
        """The verdict as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ValidationVerdict":
        """The verdict that :meth:`to_json` wrote."""
        found = json.loads(text)
        outcomes = (
            ExpectationOutcome(**{**outcome, "example_ids": tuple(outcome["example_ids"])})
            for outcome in found["expectations"]
        )
        return cls(found["passed"], found["num_records"], tuple(outcomes))


def validate_vlir(folder: Path, config: ValidationConfig) -> ValidationVerdict:
    """The verdict on the set that build_vlir made in ``folder``.

    Raises RecordError when there is no finished set there. Wrong columns end the validation early: rows
    cannot be judged without them.
    """
    import pandas as pd

    manifest = read_manifest(folder)
    columns = pd.DataFrame([asdict(finding) for finding in check_columns(folder)])
    outcomes = _validate(columns, _column_suite())
    if not all(outcome.success for outcome in outcomes):
        return ValidationVerdict(False, 0, outcomes)
    look = Look.model_validate(manifest["settings"]["look"])
    records = pd.DataFrame([asdict(finding) for finding in check_records(folder, look)])
    acceptance = pd.DataFrame([{"id": "train", "acceptance": manifest["train"]["acceptance"]}])
    outcomes += _validate(acceptance, _acceptance_suite(config))
    outcomes += _validate(records, _record_suite(config)) if len(records) else (_no_records(config),)
    return ValidationVerdict(all(outcome.success for outcome in outcomes), len(records), outcomes)


def _column_suite() -> "dict[str, Expectation]":
    """What must hold for the columns of every shard."""
    import great_expectations.expectations as gxe

    return {"columns_have_type": gxe.ExpectColumnPairValuesToBeEqual(column_A="found", column_B="expected")}


def _acceptance_suite(config: ValidationConfig) -> "dict[str, Expectation]":
    """What must hold for the generation as a whole."""
    import great_expectations.expectations as gxe

    least = config.min_acceptance
    return {"acceptance": gxe.ExpectColumnValuesToBeBetween(column="acceptance", min_value=least)}


def _record_suite(config: ValidationConfig) -> "dict[str, Expectation]":
    """What must hold for every record, by name."""
    import great_expectations.expectations as gxe

    truths = (
        "is_well_formed",
        "boxes_parse",
        "boxes_are_those_in_text",
        "boxes_are_inside",
        "seen_size_follows_look",
        "answer_matches_gold",
        "image_is_intact",
        "image_is_not_held_out",
        "was_accepted",
    )
    return {
        "num_records": gxe.ExpectTableRowCountToBeBetween(min_value=config.min_records),
        "id_is_unique": gxe.ExpectColumnValuesToBeUnique(column="id"),
        "id_is_not_empty": gxe.ExpectColumnValueLengthsToBeBetween(column="id", min_value=1),
        "question_is_not_empty": gxe.ExpectColumnValuesToBeBetween(column="text_length", min_value=1),
        "split_is_train": gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train"]),
        "has_one_answer": gxe.ExpectColumnValuesToBeInSet(column="num_answers", value_set=[1]),
        "crops_equal_boxes_in_text": gxe.ExpectColumnPairValuesToBeEqual(
            column_A="num_crops", column_B="num_boxes_in_text"
        ),
        **{name: gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[True]) for name in truths},
    }


def _no_records(config: ValidationConfig) -> ExpectationOutcome:
    """An empty table has no columns to expect anything of."""
    return ExpectationOutcome("num_records", False, config.min_records, detail="observed 0")


def _validate(table: "pd.DataFrame", suite: "Mapping[str, Expectation]") -> tuple[ExpectationOutcome, ...]:
    """The outcome of every expectation over one table whose column ``id`` names its rows."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for name, expectation in suite.items():
        expectation.meta = {"name": name}
    expectations = gx.ExpectationSuite(name="vlir", expectations=list(suite.values()))
    batch = (
        context.data_sources.add_pandas("records")
        .add_dataframe_asset("records")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": table})
    )
    result = batch.validate(
        expectations,
        result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["id"]},
    )
    # Results come in an order of their own.
    results = {found.expectation_config.meta["name"]: found for found in result.results}
    return tuple(_outcome(name, results[name]) for name in suite)


def _outcome(name: str, result: Any) -> ExpectationOutcome:
    details = result.result or {}
    examples = tuple(str(row["id"]) for row in (details.get("partial_unexpected_index_list") or []))
    count = int(details.get("unexpected_count") or 0)
    if not result.success and "observed_value" in details:
        # An expectation about the whole table has no rows to count: the shortfall is the count.
        least = int(result.expectation_config.kwargs["min_value"])
        count = least - int(details["observed_value"])
    return ExpectationOutcome(
        name, bool(result.success), count, examples[:_NUM_EXAMPLES], "" if result.success else _detail(result)
    )


def _detail(result: Any) -> str:
    """What was found instead, in a few words."""
    details = result.result or {}
    if not details:
        return f"the expectation itself failed: {result.exception_info}"
    if "observed_value" in details:
        return f"observed {details['observed_value']}"
    values = [value for value in details.get("partial_unexpected_list") or [] if not isinstance(value, bool)]
    return f"found {', '.join(map(str, values[:_NUM_EXAMPLES]))}" if values else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate as a child process: exit code 0 with a verdict, whatever it says; 1 when there is none."""
    paths = sys.argv[1:] if arguments is None else list(arguments)
    if len(paths) != 1:
        raise ConfigError(f"Usage: python -m models.vlir.validate RUN_DIR (found {len(paths)} arguments).")
    run = RunDir.open(Path(paths[0]))
    started = time.monotonic()
    try:
        config = ValidationRun.model_validate_json(run.config_text())
        verdict = validate_vlir(Path(config.records_path), config.validation)
    except VLMR3Error as error:
        run.finish(Result(status="failed", reason=str(error)))
        log.error("%s", error)
        return 1
    write_atomically(run.path / VERDICT, verdict.to_json())
    run.log(0, verdict.metrics())
    run.finish(
        Result(
            status="done",
            reason=verdict.summary(),
            artifacts={"verdict": VERDICT},
            metrics=verdict.metrics(),
            seconds=time.monotonic() - started,
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
