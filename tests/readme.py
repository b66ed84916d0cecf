"""The commands of README.md, and what tests put in the place of what only a user has."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def commands_in(page: Path) -> list[str]:
    """The commands of a page's shell blocks in their order, continued lines joined, without comments."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    plain = (re.sub(r"(^|\s+)#\s.*$", "", line) for line in lines)
    return [" ".join(line.split()) for line in plain if line.strip()]


def documented(command: str, replaced: Mapping[str, str] | None = None) -> str:
    """A command of the README, ready for a shell; its words in ``replaced`` stand for those of the test."""
    assert command in commands_in(README), f"The README does not say: {command}"
    for words, own in (replaced or {}).items():
        command = re.sub(rf"(?<![^\s=]){re.escape(words)}(?=[\s;]|$)", own, command)
    return command


def arguments_of(command: str, replaced: Mapping[str, str] | None = None) -> list[str]:
    """What follows the name of a program in such a command, word by word."""
    return shlex.split(documented(command, replaced))[1:]
