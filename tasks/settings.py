"""Where a run keeps things, read from the environment: the only module that reads or writes it.

Everything lives under one work directory (``.vlm-r3`` in the current directory) unless a variable names
another place. A command-line option is written into the environment, so that child processes and workers
agree.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import ConfigError

# Where the project lies: flows, presets, infra/.
HOME = Path(__file__).resolve().parent.parent

WORK_DIR = "VLM_R3_WORK_DIR"
ARTIFACTS = "VLM_R3_ARTIFACTS"
BENCHMARKS = "VLM_R3_BENCHMARKS"
MAX_CHILDREN = "VLM_R3_MAX_CHILDREN"
RETRIES = "VLM_R3_RETRIES"
NODES = "VLM_R3_NODES"
NODE_SILENCE = "VLM_R3_NODE_SILENCE"
SERVE_API_KEY = "VLM_R3_SERVE_API_KEY"
REFRESH = "PREFECT_TASKS_REFRESH_CACHE"

# What a second heavy child needs free before it may start beside the first. Measured with preset tiny: an
# R-GRPO child (DeepSpeed and vLLM in one process) peaks near 2.5 GiB.
MEMORY_PER_CHILD_GIB = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The places of a run. ``max_children`` 0 means: decide from cores and free memory.

    ``retries`` is how often a stage that was lost is tried again (:func:`tasks.caching.may_pass`). ``nodes``,
    ``node_index`` and ``job`` say which part of a job in a cluster this is (:mod:`tasks.nodes`), and
    ``node_silence`` after how many seconds without a sign of life another node is lost, 0 for never.

    ``refresh`` makes every stage again, whatever the cache holds. ``benchmarks`` is the folder, or the prefix
    in S3, that holds one folder per benchmark; empty when none is set.
    """

    work_dir: Path
    artifacts: str
    tracking_uri: str
    prefect_api_url: str
    max_children: int
    refresh: bool
    benchmarks: str = ""
    retries: int = 0
    nodes: str = ""
    node_index: int = 0
    job: str = ""
    node_silence: int = 120

    @classmethod
    def read(cls) -> "Settings":
        """The settings of this process. Raises ConfigError for a value that cannot be used."""
        work_dir = Path(os.environ.get(WORK_DIR) or ".vlm-r3").absolute()
        return cls(
            work_dir=work_dir,
            artifacts=os.environ.get(ARTIFACTS) or (work_dir / "artifacts").as_uri(),
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir / 'mlflow.db'}",
            prefect_api_url=os.environ.get("PREFECT_API_URL", ""),
            max_children=_count(MAX_CHILDREN, "decides by cores and memory"),
            retries=_count(RETRIES, "never tries again"),
            nodes=os.environ.get(NODES, ""),
            node_index=_count("JOB_COMPLETION_INDEX", "is the first node"),
            job=os.environ.get("VLM_R3_JOB", ""),
            node_silence=_count(NODE_SILENCE, "gives no node up", default=120),
            benchmarks=os.environ.get(BENCHMARKS, ""),
            refresh=os.environ.get(REFRESH, "").lower() in ("1", "true"),
        )

    @property
    def runs(self) -> Path:
        """The folder of run directories."""
        return self.work_dir / "runs"

    @property
    def verdicts(self) -> Path:
        """What judges of benchmarks said, for all runs."""
        return self.work_dir / "verdicts"

    @property
    def results(self) -> Path:
        """Where Prefect keeps task results: what makes a second run skip what has not changed."""
        return self.work_dir / "results"

    def benchmark_folder(self, name: str) -> str:
        """Where the files of a benchmark are when nobody says so. Raises ConfigError when that is not set."""
        if not self.benchmarks:
            raise ConfigError(
                f"Where are the files of {name!r}? Give --data FOLDER (or s3://...), or set {BENCHMARKS} to "
                "a place that holds one folder per benchmark."
            )
        return f"{self.benchmarks.rstrip('/')}/{name}"

    @property
    def features(self) -> Path:
        """What vision towers made of pictures, for all runs; it may be removed at any time."""
        return self.work_dir / "features"

    @property
    def fetched(self) -> Path:
        """Local copies of artifacts whose store is elsewhere."""
        return self.work_dir / "fetched"

    @property
    def mirror(self) -> Path:
        """Local copies of what lies in S3."""
        return self.work_dir / "mirror"

    @property
    def benchmark_lock(self) -> Path:
        """Where the digests of published benchmarks are pinned, unless another file is named."""
        return self.work_dir / "benchmarks.lock.json"

    @property
    def undelivered(self) -> Path:
        """What a tracker did not take while it was away."""
        return self.work_dir / "undelivered"

    @property
    def tracking_files(self) -> Path:
        """Where MLflow keeps files when it has no server."""
        return self.work_dir / "mlflow"


def prepare(
    work_dir: Path | None = None, *, prefect_api_url: str | None = None, refresh: bool = False
) -> Settings:
    """Fix the work directory and the quiet defaults of third parties, for this process and its children.

    Must run before Prefect or MLflow is imported: both read their settings once. Values that the user set
    stay.
    """
    if work_dir is not None:
        os.environ[WORK_DIR] = str(work_dir.absolute())
    if prefect_api_url is not None:
        os.environ["PREFECT_API_URL"] = prefect_api_url
    if refresh:
        os.environ[REFRESH] = "true"
    settings = Settings.read()
    os.environ[WORK_DIR] = str(settings.work_dir)
    for name, value in _defaults(settings).items():
        os.environ.setdefault(name, value)
    return settings


def child_environment(*, num_threads: int, bin_folder: Path) -> dict[str, str]:
    """The environment of a heavy child process.

    ``bin_folder`` holds ninja, which DeepSpeed's operator needs on the path. ``num_threads`` 0 leaves the
    number of threads to the libraries.
    """
    environment = {**os.environ, **_CHILD_DEFAULTS}
    environment["PATH"] = os.pathsep.join([str(bin_folder), os.environ.get("PATH", os.defpath)])
    if num_threads:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(num_threads)
    return environment


def server_environment(*, num_threads: int, bin_folder: Path) -> dict[str, str]:
    """The environment of a model server: a heavy child's, and nothing is looked for on the hub."""
    return {
        **child_environment(num_threads=num_threads, bin_folder=bin_folder),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def limit_tracker_retries() -> None:
    """Let MLflow give up after seconds, in a worker's process too; by itself it tries for four minutes.

    A tracker that is away must not hold up a run: what it did not take is sent again later.
    """
    for name, value in _TRACKER_DEFAULTS.items():
        os.environ.setdefault(name, value)


def service_environment(**values: str) -> dict[str, str]:
    """The environment of a server of ours: these values, and nothing that is about other servers."""
    foreign = ("AWS_", "MLFLOW_", "PREFECT_", "VLM_R3_", "PG")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONUNBUFFERED": "1", **values}


def is_root() -> bool:
    """Whether this process may do anything."""
    return os.geteuid() == 0


def compiler_name() -> str:
    """The C++ compiler that DeepSpeed's operator is built with."""
    return os.environ.get("CXX", "g++")


def endpoint_key() -> str:
    """The key of the chat endpoint, empty when it needs none."""
    return os.environ.get("VLM_R3_API_KEY", "")


def serving_api_key() -> str:
    """The key that clients of our own server must send; empty where anybody may ask."""
    return os.environ.get(SERVE_API_KEY, "")


def is_ci() -> bool:
    """True where a machine reads the output: no live display."""
    return bool(os.environ.get("CI"))


_TRACKER_DEFAULTS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_CHILD_DEFAULTS: Mapping[str, str] = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def _defaults(settings: Settings) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(settings.work_dir / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.results),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _count(name: str, zero: str, *, default: int = 0) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r}. It must be a whole number; 0 {zero}.")
    return int(text)
