"""Dockerfiles: pinned, small, not root, with a health check. The rules are hadolint's that matter here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "infra" / "docker").glob("*.Dockerfile"))
INSTRUCTIONS = {
    *(
        "ARG",
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "LABEL",
        "ENV",
        "USER",
        "VOLUME",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    ),
}


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and argument of every logical line."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(path: Path) -> list[tuple[str, str]]:
    found = instructions(path)
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_it_is_written_in_known_instructions(path: Path) -> None:
    assert {name for name, _ in instructions(path)} <= INSTRUCTIONS
    assert len(FILES) == 3


def test_it_starts_from_a_pinned_image(path: Path) -> None:
    arguments = dict(value.split("=", 1) for name, value in instructions(path) if name == "ARG")
    for name, value in instructions(path):
        if name == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], value.split()[0])
            assert re.search(r":\d+\.\d+\.\d+-[a-z-]+$|@sha256:[0-9a-f]{64}$", image), image


def test_it_ends_as_somebody_who_is_not_root(path: Path) -> None:
    users = [value for name, value in last_stage(path) if name == "USER"]
    assert users
    assert int(users[-1].split(":")[0]) >= 10000
    after = [name for name, _ in last_stage(path)]
    assert "RUN" not in after[after.index("USER") :]


def test_its_health_can_be_asked(path: Path) -> None:
    assert [value for name, value in last_stage(path) if name == "HEALTHCHECK"]


def test_it_installs_what_is_locked_and_leaves_no_cache(path: Path) -> None:
    runs = [value for name, value in instructions(path) if name == "RUN"]
    locked = {value.split()[0] for name, value in instructions(path) if name == "COPY" and ".lock" in value}
    assert locked
    assert all((ROOT / lock).is_file() for lock in locked)
    for run in runs:
        assert "apt-get install" not in run or (
            "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run
        )
        for command in re.findall(r"pip install [^&]*|uv pip sync [^&]*", run):
            assert "--no-cache" in command, command


def test_only_named_places_of_the_repository_are_copied(path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for name, value in instructions(path):
        if name == "COPY" and "--from" not in value:
            sources = value.split()[:-1]
            assert all(source.split("/")[0] in allowed and (ROOT / source).exists() for source in sources)
