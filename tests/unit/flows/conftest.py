from pathlib import Path

import pytest

from tests.benchmark_examples import file_name, schema_of, small, write


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the miniature of MME."""
    published, split, rows = small("mme")
    write(tmp_path / "mme" / file_name(split), rows, schema_of(published))
    return tmp_path / "mme"
