"""Services that several integration tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import Settings, prepare
from tests.s3_proxy import Proxy, proxy_of
from tests.s3_server import S3Server, s3_server
from tests.team_server import Team, listening, team_server
from tests.trained import Trained, trained_place


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; tests keep to prefixes of their own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server, named by the environment as the place of S3."""
    with proxy_of(s3.endpoint) as proxy:
        for name, value in s3.environment(endpoint=proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture(scope="session")
def empty_tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with all its tables and nothing in them: they take it two seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tracker") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def settings(work_dir: Path, empty_tracker: Path) -> Settings:
    """Those of a work directory of which only the tracker's tables are there."""
    work_dir.mkdir()
    shutil.copy(empty_tracker, work_dir / "mlflow.db")
    return prepare(work_dir)


@pytest.fixture(scope="session")
def messages() -> Iterator[tuple[str, list[str]]]:
    """Where the team server sends messages, and those that it has sent."""
    with listening() as found:
        yield found


@pytest.fixture(scope="session")
def team(messages: tuple[str, list[str]]) -> Iterator[Team]:
    """A running team server; it takes a minute to start."""
    with team_server(messages[0]) as started:
        yield started


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """A user's folder with a first champion, made by the README's commands; it takes a minute or two."""
    with trained_place(tmp_path_factory.mktemp("trained")) as place:
        yield place
