"""Every command in README and docs is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from flows.cli import parser
from tests.readme import commands_in

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


DOCUMENTED = [
    (page.name, line)
    for page in PAGES
    for line in commands_in(page)
    if re.match(r"(?:\w+=\S+ +)*vlm-r3 ", line)
]


def test_there_are_commands_to_check():
    assert len([line for name, line in DOCUMENTED if name == "README.md"]) >= 15


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_a_documented_command_is_one(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)
    arguments = words[words.index("vlm-r3") + 1 :]
    try:
        parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: {line}\n{capsys.readouterr().err}")


def test_documented_deployments_and_files_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    files = [ROOT / "prefect.yaml", *(ROOT / "infra" / "deployments").glob("*.yaml")]
    declared = [one for file in files for one in yaml.safe_load(file.read_text())["deployments"]]
    names = {f"{Path(one['entrypoint']).stem.replace('_', '-')}/{one['name']}" for one in declared}
    asked = set(re.findall(r"prefect deployment run ([\w-]+/[\w-]+)", text))
    assert "pipeline/tiny" in asked
    assert asked <= names
    paths = set(re.findall(r"(?:apply -f|compose -f|--prefect-file|build -f) (\S+/\S+)", text))
    assert "infra/k8s/" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
