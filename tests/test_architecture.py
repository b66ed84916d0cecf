"""Rules of the architecture that imports alone cannot express (the others are import-linter contracts)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from models.benchmarks.scorer import BENCHMARKS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "models")
HEAVY = (
    "torch",
    "transformers",
    "deepspeed",
    "vllm",
    "great_expectations",
    "mlflow",
    "prefect",
    "boto3",
)
LIGHT = (
    "models.config",
    "models.run_config",
    "models.presets",
    "models.errors",
    "models.records",
    "models.protocol",
    "models.region",
    "models.answers",
    "models.trajectory",
    "models.transcripts",
    "models.engine",
    "models.crops",
    "models.narration",
    "models.serving.engine_process",
    "models.serving.server",
    "models.chat",
    "models.endpoints",
    "models.http_engine",
    "models.usage",
    "models.png",
    "models.vlir.prompts",
    "models.vlir.judge_endpoints",
    "models.corruption",
    "models.rollout",
    "models.packing",
    "models.pictures",
    "models.rundir",
    "models.child",
    "models.promotion",
    "models.evidence",
    "models.source_versions",
    "models.vlir.earlier",
    "models.vlir.versions",
    "models.history",
    "models.tiny.world",
    "models.tiny.phrases",
    "models.tiny.teacher",
    "models.vlir.build",
    "models.vlir.leakage",
    "models.vlir.sources.named",
    "models.vlir.sources.open",
    "models.vlir.validate",
    "models.rgrpo.rewards",
    "models.rgrpo.advantages",
    "models.schedule",
    "models.benchmarks.judging",
    "models.benchmarks.sets",
    *(f"models.benchmarks.{name}" for name in BENCHMARKS),
    "models.evaluation.metrics",
    "models.evaluation.judge",
    "models.evaluation.score",
    "models.evaluation.table",
    "models.evaluation.report",
    "models.evaluation.variants",
    "models.evaluation.benchmark",
    "models.evaluation.model_table_formats",
    "models.answer_rules",
    "models.baselines",
    "models.published_numbers",
    "tasks.benchmark_data",
    "tasks.analysis_request",
    "tasks.benchmark_request",
    "tasks.earlier_runs",
    "tasks.model_source",
    "tasks.serving",
    "tasks.settings",
    "tasks.artifacts",
    "tasks.launch",
    "tasks.measured",
    "tasks.vllm_server",
    "tasks.progress",
    "tasks.ask",
    "tasks.doctor",
    "tasks.preflight",
    "tasks.services",
    "tasks.source_files",
    "flows.cli",
    "tasks.retention",
    "tasks.journal",
    "flows.registry_commands",
    "flows.retrain_command",
    "flows.commands",
    "flows.serve_command",
    "flows.services_command",
    "flows.deploy_command",
    "tasks.team_config",
    "tasks.team_keeper",
    "tasks.nodes",
    "tasks.node",
    "flows.store_commands",
)
# Who may touch what is outside: one adapter each.
SUBPROCESS_USERS = {"tasks/launch.py"}
ENVIRONMENT_USERS = {
    "tasks/settings.py",
    # These run in a process of their own, where the launcher or vLLM speak through the environment.
    "tasks/supervisor.py",
    "models/child.py",
    "models/distributed.py",
    "models/evaluation/benchmark.py",
    "models/evaluation/ranks.py",
    "models/evaluation/score.py",
    "models/rgrpo/engine_process.py",
    "models/vllm_engine.py",
    "models/vlir/teachers.py",
    "models/vlir/judge_endpoints.py",
}


# Nothing but the fields of every stage, each with its sentence.
LONG_FILES = {"models/config.py"}


def source_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_the_light_tier_imports_nothing_heavy() -> None:
    program = (
        f"import importlib, sys\nfor name in {LIGHT!r}:\n    importlib.import_module(name)\n"
        f"    found = sorted(heavy for heavy in {HEAVY!r} if heavy in sys.modules)\n"
        "    assert not found, f'{name} imports {found}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("subprocess", SUBPROCESS_USERS), ("boto3", {"tasks/s3.py"})],
)
def test_each_outside_system_has_one_adapter(module: str, allowed: set[str]) -> None:
    users = {name for name, tree in trees().items() if module in imported(tree)}
    assert users <= allowed


def test_only_settings_reads_the_environment() -> None:
    users = {name for name, tree in trees().items() if uses_environment(tree)}
    assert users <= ENVIRONMENT_USERS


@pytest.mark.parametrize("module", ["mlflow"])
def test_only_its_adapters_know_mlflow(module: str) -> None:
    users = {name for name, tree in trees().items() if module in imported(tree)}
    assert users == {
        "tasks/tracking.py",
        "tasks/promotions.py",
        "tasks/registry.py",
        "tasks/traces.py",
        "tasks/versions.py",
        "tasks/model_flavor.py",
        "tasks/pyfunc_model.py",
    }


def test_nothing_catches_everything() -> None:
    caught = [
        f"{name}:{node.lineno}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
    ]
    assert caught == []


def test_files_and_functions_stay_readable() -> None:
    names = {path.relative_to(ROOT).as_posix(): path for path in source_files()}
    long_files = {name for name, path in names.items() if path.read_text().count("\n") > 400}
    long_functions = {
        f"{name}:{node.name}": length
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert long_files <= LONG_FILES
    assert long_functions == {}


def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in source_files()
    }


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of everything a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def uses_environment(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(tree)
    )
