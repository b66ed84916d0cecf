"""What a build has asked of endpoints, over all its starts."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from models.rundir import write_atomically
from models.usage import Usage
from models.vlir_config import Prices

_FILE = "usage.json"


@runtime_checkable
class Metered(Protocol):
    """Something at an endpoint that counts what it is asked for."""

    @property
    def usage(self) -> Usage:
        """Since it was opened."""


class Spending:
    """The usage of the teacher and the judges; what earlier starts used is kept in ``folder``.

    A start that was killed since its last :meth:`save` used more than is known.
    """

    def __init__(self, folder: Path, prices: Mapping[str, Prices]) -> None:
        """``prices`` are those of everybody who may be asked, by name."""
        self._path, self._prices = folder / _FILE, prices
        self._earlier = {name: Usage(**values) for name, values in _read(self._path).items()}
        self._metered: dict[str, Metered] = {}

    def watch(self, name: str, asked: object) -> None:
        """Count what this one is asked for; nothing is counted of one that is at no endpoint."""
        if isinstance(asked, Metered):
            self._metered[name] = asked

    def save(self) -> None:
        """Keep it for the next start."""
        totals = {name: asdict(usage) for name, usage in self._totals().items()}
        if totals:
            write_atomically(self._path, json.dumps(totals, sort_keys=True))

    def metrics(self) -> dict[str, float]:
        """As metrics ``vlir/<name>/...``: requests, tokens, retries by cause, cost in US dollars."""
        return {
            name: value
            for asked, usage in self._totals().items()
            for name, value in usage.metrics(f"vlir/{asked}", self._prices[asked]).items()
        }

    def _totals(self) -> dict[str, Usage]:
        totals = {
            name: self._earlier.get(name, Usage())
            + (self._metered[name].usage if name in self._metered else Usage())
            for name in sorted(self._earlier.keys() | self._metered.keys())
        }
        return {name: usage for name, usage in totals.items() if usage.num_requests}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found
