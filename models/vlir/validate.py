"""Stage validate: the gate before any accelerator. A Great Expectations suite over the built records.

:mod:`models.vlir.checks` turns every stored record into a row of plain findings,
:mod:`models.vlir.set_checks` the set as a whole; :mod:`models.vlir.suite` says what must hold. The verdict is
a plain value: which expectation failed, how often, and three example ids.

``python -m models.vlir.validate RUN_DIR`` does the same in a process of its own, because Great Expectations
is large: from ``config.json`` (:class:`models.run_config.ValidationRun`) to the folder ``verdict``.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from models.config import Look, ValidationConfig
from models.errors import ConfigError, VLMR3Error
from models.records import sha256
from models.run_config import ValidationRun
from models.rundir import Result, RunDir, write_atomically
from models.vlir.checks import Rules, check_records, read_manifest, record_files
from models.vlir.layout import MANIFEST
from models.vlir.measured import Measured
from models.vlir.set_checks import (
    DRIFTS,
    DriftFinding,
    check_columns,
    check_sources,
    check_splits,
    drift,
    read_statistics,
)
from models.vlir.suite import bounds, suite_digest, suite_name, suite_text, suites
from models.vlir.texts import check_languages
from models.vlir.verdict import VERDICT, ExpectationOutcome, ValidationVerdict

if TYPE_CHECKING:  # importing these takes seconds
    import pandas as pd

    from models.vlir.gate import Gate
    from models.vlir.suite import Suites

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
# What is left in a run directory.
VERDICT_FOLDER, DOCS_FOLDER, STATISTICS_FILE = "verdict", "data_docs", "statistics.json"
_BATCHES_PER_REPORT = 16


def validate_vlir(
    folder: Path,
    config: ValidationConfig,
    *,
    previous: Path | None = None,
    out: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> ValidationVerdict:
    """The verdict on the set that build_vlir made in ``folder``.

    ``previous`` is the ``statistics.json`` of an earlier version, for drift. Into ``out`` go the folder
    ``verdict`` (the verdict, the suite named by its digest, the measured statistics) and, when asked for, the
    folder ``data_docs``. ``progress`` is told (done, total) records. Wrong columns end the validation early:
    rows cannot be judged without them.

    Raises RecordError when there is no finished set there, ConfigError for a language that cannot be told.
    """
    from models.vlir.gate import Gate

    manifest = read_manifest(folder)
    check_languages(config.languages)
    earlier = read_statistics(previous) if previous else None
    look = Look.model_validate(manifest["settings"]["look"])
    suite = suites(config)
    text = suite_text(suite, config, look)
    has_docs = config.data_docs and out is not None
    gate = Gate(out / DOCS_FOLDER if has_docs and out else None)
    measured = Measured()
    outcomes = gate.outcomes("columns", _table(check_columns(folder)), suite["columns"])
    if all(outcome.success for outcome in outcomes):
        records = _records(folder, Rules.of(folder, look, config), measured, progress)
        outcomes += _set_outcomes(gate, suite, folder, manifest, measured, earlier)
        outcomes += (
            gate.outcomes("records", records, suite["records"])
            if len(records)
            else (_no_records(config.min_records),)
        )
    verdict = ValidationVerdict(
        passed=all(outcome.success for outcome in outcomes),
        num_records=measured.num_rows,
        expectations=outcomes,
        suite_digest=suite_digest(text),
        data_digest=sha256((folder / MANIFEST).read_bytes()),
    )
    if out:
        _write(out / VERDICT_FOLDER, verdict, text, measured)
    if has_docs:
        gate.write_docs()
    return verdict


def _records(folder: Path, rules: Rules, measured: Measured, progress: Progress) -> "pd.DataFrame":
    """The findings about all records, a row each; pictures do not stay in memory."""
    import pandas as pd

    total = sum(pq.read_metadata(path).num_rows for path in record_files(folder))
    parts = [pd.DataFrame()]
    for number, batch in enumerate(check_records(folder, rules, measured)):
        parts.append(pd.DataFrame([asdict(finding) for finding in batch]))
        if number % _BATCHES_PER_REPORT == 0:
            progress(measured.num_rows, total)
    progress(measured.num_rows, total)
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _set_outcomes(
    gate: "Gate",
    suite: "Suites",
    folder: Path,
    manifest: dict[str, Any],
    measured: Measured,
    earlier: dict[str, dict[str, int]] | None,
) -> tuple[ExpectationOutcome, ...]:
    """What the set as a whole came to; drift is skipped where there is nothing to compare with."""
    counts = measured.statistics.to_dict()
    moved = {name: drift(counts[of], earlier[of]) for name, of in DRIFTS.items()} if earlier else {}
    whole = {"id": "train", "acceptance": manifest["train"]["acceptance"]}
    whole |= {name: found.distance for name, found in moved.items()}
    judged = {name: each for name, each in suite["set"].items() if name in whole}
    outcomes = gate.outcomes("set", _table([whole]), judged)
    outcomes = tuple(
        _with_drift(outcome, moved[outcome.name], measured) if outcome.name in moved else outcome
        for outcome in outcomes
    )
    skipped = tuple(
        ExpectationOutcome(
            name,
            True,
            detail="skipped: no previous version to compare with",
            bounds=bounds(each),
            skipped=True,
        )
        for name, each in suite["set"].items()
        if name not in whole
    )
    files, sources = _table(check_splits(folder)), _table(check_sources(manifest, measured))
    return (
        *outcomes,
        *skipped,
        *(gate.outcomes("files", files, suite["files"]) if len(files) else ()),
        *(gate.outcomes("sources", sources, suite["sources"]) if len(sources) else ()),
    )


def _with_drift(outcome: ExpectationOutcome, found: DriftFinding, measured: Measured) -> ExpectationOutcome:
    """The same outcome; where the set moved too far, with what moved most and records that show it."""
    if outcome.success:
        return outcome
    examples = tuple(measured.examples.get(found.most_moved, ()))
    return replace(outcome, example_ids=examples, detail=f"{outcome.detail}: {found.words}")


def _no_records(least: int) -> ExpectationOutcome:
    """An empty table has no columns to expect anything of."""
    return ExpectationOutcome("num_records", False, least, detail="observed 0", bounds=f"at least {least}")


def _table(rows: Sequence[Any]) -> "pd.DataFrame":
    """Findings as a table, a row each."""
    import pandas as pd

    return pd.DataFrame([row if isinstance(row, dict) else asdict(row) for row in rows])


def _write(folder: Path, verdict: ValidationVerdict, suite: str, measured: Measured) -> None:
    """Keep the verdict, what it was judged by, and what the next version is compared with."""
    statistics = json.dumps(measured.statistics.to_dict(), indent=2, sort_keys=True) + "\n"
    write_atomically(folder / STATISTICS_FILE, statistics)
    write_atomically(folder / suite_name(suite), suite)
    write_atomically(folder / VERDICT, verdict.to_json())


def main(arguments: Sequence[str] | None = None) -> int:
    """Validate as a child process: exit code 0 with a verdict, whatever it says; 1 when there is none."""
    paths = sys.argv[1:] if arguments is None else list(arguments)
    if len(paths) != 1:
        raise ConfigError(f"Usage: python -m models.vlir.validate RUN_DIR (found {len(paths)} arguments).")
    run = RunDir.open(Path(paths[0]))
    started = time.monotonic()
    try:
        config = ValidationRun.model_validate_json(run.config_text())
        verdict = validate_vlir(
            Path(config.records_path),
            config.validation,
            previous=Path(config.previous_path) if config.previous_path else None,
            out=run.path,
            progress=lambda done, total: run.log(done, {"progress/done": done, "progress/total": total}),
        )
    except VLMR3Error as error:
        run.finish(Result(status="failed", reason=str(error)))
        log.error("%s", error)
        return 1
    run.log(verdict.num_records, verdict.metrics())
    run.finish(
        Result(
            status="done",
            reason=verdict.summary(),
            artifacts={
                "verdict": VERDICT_FOLDER,
                **({"data_docs": DOCS_FOLDER} if config.validation.data_docs else {}),
            },
            metrics=verdict.metrics(),
            seconds=time.monotonic() - started,
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
