"""The numbers that the paper prints (``infra/published/vlm-r3.yaml``), and what to know before comparing."""

from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from models.benchmarks.scorer import BENCHMARKS
from models.config import Config
from models.errors import ConfigError

PUBLISHED_FILE = Path(__file__).resolve().parent.parent / "infra" / "published" / "vlm-r3.yaml"

# A column of Table 2 that is no benchmark.
AVERAGE = "average"


class PublishedRow(Config):
    """One row as printed: percent, MME in points. ``drops`` below the full model are in Table 2 only."""

    model: str
    params: str = ""
    group: str = ""
    values: dict[str, float]
    drops: dict[str, float] = Field({}, description="How far each value is below the full model's.")
    origin: str = Field("", description="Where numbers of the row seem to come from.")

    @property
    def label(self) -> str:
        """The name with its size, as in "Qwen2.5-VL 7B"."""
        return self.model if self.params in ("", "-") else f"{self.model} {self.params}"


class PublishedTable(Config):
    """One table of the paper; a cell that it leaves open is in no row's ``values``."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    @model_validator(mode="after")
    def _cells_are_in_columns(self) -> "PublishedTable":
        unknown = sorted({*self.columns} - {*BENCHMARKS, AVERAGE})
        if unknown:
            raise ValueError(
                f"table {self.number}: columns {unknown} are no benchmarks; there are {BENCHMARKS}"
            )
        for row in self.rows:
            strange = sorted({*row.values, *row.drops} - {*self.columns})
            if strange:
                raise ValueError(
                    f"table {self.number}, row {row.model!r}: {strange} are not among its columns"
                )
        return self


class Caution(Config):
    """Why published and measured numbers may differ; about all columns or models where none is named."""

    text: str
    columns: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class PublishedNumbers(Config):
    """Every table of a paper."""

    source: str
    tables: tuple[PublishedTable, ...]
    cautions: tuple[Caution, ...]

    def table(self, number: int) -> PublishedTable:
        """The table of that number. Raises ConfigError when there is none."""
        for table in self.tables:
            if table.number == number:
                return table
        raise ConfigError(
            f"{self.source} has no table {number} here, only {', '.join(str(t.number) for t in self.tables)}."
        )


def read_published(path: Path = PUBLISHED_FILE) -> PublishedNumbers:
    """The published numbers. Raises ConfigError for a file that is none."""
    try:
        return PublishedNumbers.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path} does not hold published numbers: {error}") from error
