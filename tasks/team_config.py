"""Ports and passwords of a team server, drawn once and kept in ``WORK_DIR/services/`` (mode 600).

``services.json`` is for the servers, ``env`` for those who use them.
"""

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.ports import free_ports
from tasks.settings import Settings

HOST = "127.0.0.1"
USER = "vlm"
_S3_PARTS = ("s3", "master", "volume", "filer", "admin")
S3_PORTS = (*_S3_PARTS, *(f"{name}.grpc" for name in _S3_PARTS))
_PORTS = ("postgres", "prefect", "mlflow", "worker", *S3_PORTS)


class TeamConfig(BaseModel):
    """Where the services listen and what they ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ports: dict[str, int]
    postgres_password: str
    prefect_password: str
    s3_secret: str
    mlflow_password: str
    mlflow_secret: str

    @classmethod
    def draw(cls) -> "TeamConfig":
        """New ports and passwords."""
        ports = dict(zip(_PORTS, free_ports(len(_PORTS))))
        words = [name for name in cls.model_fields if name != "ports"]
        return cls(ports=ports, **{name: secrets.token_urlsafe(24) for name in words})

    @classmethod
    def keep(cls, folder: Path) -> "TeamConfig":
        """Those of an earlier start, drawn now when there is none."""
        path = folder / "services.json"
        if path.exists():
            return cls.model_validate_json(path.read_text())
        drawn = cls.draw()
        write_private(path, drawn.model_dump_json(indent=1))
        return drawn

    def url(self, name: str) -> str:
        """Where a service with an HTTP interface answers."""
        return f"http://{HOST}:{self.ports[name]}"

    def database(self, name: str, driver: str = "postgresql") -> str:
        """The address of a database, with its password."""
        return f"{driver}://{USER}:{self.postgres_password}@{HOST}:{self.ports['postgres']}/{name}"

    def client_environment(self, settings: Settings, home: Path) -> dict[str, str]:
        """What a worker, a command line or a notebook needs to use the services."""
        return {
            "VLM_R3_WORK_DIR": str(settings.work_dir),
            "VLM_R3_HOME": str(home),
            "VLM_R3_ARTIFACTS": "s3://artifacts/vlm-r3",
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.prefect_password}",
            "PREFECT_HOME": str(settings.work_dir / "prefect"),
            "PREFECT_LOCAL_STORAGE_PATH": str(settings.results),
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow_password,
            **self.s3_environment(),
        }

    def s3_environment(self) -> dict[str, str]:
        """What boto3 reads."""
        return {
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": self.s3_secret,
        }


def services_folder(settings: Settings) -> Path:
    """Where the services keep their data, logs and secrets."""
    return settings.work_dir / "services"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at no time by anybody else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def env_text(values: Mapping[str, str]) -> str:
    """Lines for a shell, or for --env-file where no value needs quotes."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def compose_secrets() -> dict[str, str]:
    """New values for everything that infra/compose.yaml and infra/k8s/ want from outside."""
    return {
        "POSTGRES_PASSWORD": secrets.token_urlsafe(24),
        "PREFECT_AUTH_STRING": f"{USER}:{secrets.token_urlsafe(24)}",
        "S3_ACCESS_KEY": USER,
        "S3_SECRET_KEY": secrets.token_urlsafe(24),
        "MLFLOW_ADMIN": "admin",
        "MLFLOW_ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_SECRET_KEY": secrets.token_urlsafe(24),
    }
