"""Fixtures of the unit tests: random tiny models, made once per session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose output head is its own, as in Qwen2.5-VL-7B."""
    return _save(tmp_path_factory, tied=False)


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose output head is the embedding matrix, as in Qwen2.5-VL-3B."""
    return _save(tmp_path_factory, tied=True)


@pytest.fixture(scope="session")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the files of Qwen2.5-VL-7B: older names, and a flat configuration."""
    from tests.tiny_models import as_published

    return as_published(_save(tmp_path_factory, tied=False))


def _save(tmp_path_factory: pytest.TempPathFactory, *, tied: bool) -> Path:
    # transformers takes seconds to import: only the tests that need a model pay for it.
    from tests.tiny_models import save_random_model

    return save_random_model(tmp_path_factory.mktemp("model"), tied=tied)
