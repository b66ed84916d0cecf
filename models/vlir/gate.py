"""Great Expectations at work: tables of findings in, outcomes out. Importing that takes seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.vlir.measured import NUM_EXAMPLES
from models.vlir.suite import bounds
from models.vlir.verdict import ExpectationOutcome

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

_DOCS_SITE = "vlm-r3"


class Gate:
    """A context of Great Expectations. With ``docs`` it can build its pages there (``index.html``)."""

    def __init__(self, docs: Path | None = None) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._context = gx.get_context(mode="ephemeral")
        self._context.enable_analytics(False)
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = self._context.data_sources.add_pandas("vlir")
        if docs:
            folder = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
            index = {"class_name": "DefaultSiteIndexBuilder"}
            self._context.add_data_docs_site(
                site_name=_DOCS_SITE,
                site_config={
                    "class_name": "SiteBuilder",
                    "store_backend": folder,
                    "site_index_builder": index,
                },
            )

    def outcomes(
        self, name: str, table: "pd.DataFrame", suite: "Mapping[str, Expectation]"
    ) -> tuple[ExpectationOutcome, ...]:
        """The outcome of every expectation over one table whose column ``id`` names its rows."""
        import great_expectations as gx

        for each, expectation in suite.items():
            expectation.meta = {"name": each}
        definition = gx.ValidationDefinition(
            name=name,
            data=self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all"),
            suite=self._context.suites.add(gx.ExpectationSuite(name=name, expectations=list(suite.values()))),
        )
        result = self._context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": table},
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["id"]},
        )
        # Results come in an order of their own.
        results = {found.expectation_config.meta["name"]: found for found in result.results}
        return tuple(_outcome(each, suite[each], results[each], table) for each in suite)

    def write_docs(self) -> None:
        """Build the pages about everything judged so far."""
        self._context.build_data_docs(site_names=[_DOCS_SITE])


def _outcome(name: str, expectation: "Expectation", result: Any, table: "pd.DataFrame") -> ExpectationOutcome:
    details = result.result or {}
    examples = tuple(str(row["id"]) for row in (details.get("partial_unexpected_index_list") or []))
    count = int(details.get("unexpected_count") or 0)
    if not result.success and "observed_value" in details:
        # An expectation about the whole table has no rows to count: the shortfall is the count.
        least = int(result.expectation_config.kwargs["min_value"])
        count = least - int(details["observed_value"])
    return ExpectationOutcome(
        name,
        bool(result.success),
        count,
        examples[:NUM_EXAMPLES],
        "" if result.success else _detail(result),
        bounds=bounds(expectation),
        observed=_observed(details, result.expectation_config.kwargs.get("column"), table),
    )


def _observed(details: Mapping[str, Any], column: str | None, table: "pd.DataFrame") -> str:
    """The range of a column of numbers, or the one number of the whole table."""
    if "observed_value" in details:
        return str(details["observed_value"])
    if column is None or table[column].dtype.kind not in "iuf":
        return ""
    low, high = table[column].min(), table[column].max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _detail(result: Any) -> str:
    """What was found instead, in a few words."""
    details = result.result or {}
    if not details:
        return f"the expectation itself failed: {result.exception_info}"
    if "observed_value" in details:
        return f"observed {details['observed_value']}"
    values = [value for value in details.get("partial_unexpected_list") or [] if not isinstance(value, bool)]
    return f"found {', '.join(map(str, values[:NUM_EXAMPLES]))}" if values else ""
