"""A rule that was looked at, and what came of it: what gates, preflight and guards are made of."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

PREFLIGHT = "preflight.json"


class Part(BaseModel):
    """Base of what is kept as evidence: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Part):
    """One rule that was looked at: what was found, the rule, and whether it is kept."""

    name: str
    value: str
    rule: str
    passed: bool

    def __str__(self) -> str:
        return f"{'yes' if self.passed else 'NO'}: {self.rule} (found: {self.value})"


class Preflight(Part):
    """What was known to be in order before anything was started; ``under`` says on what it was tried."""

    checks: tuple[Check, ...]
    under: str = ""

    @property
    def passed(self) -> bool:
        """Whether there are checks, and all are kept."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def renewed(self, later: "Preflight") -> "Preflight":
        """With what was found later in the place of what it had found."""
        names = {check.name for check in later.checks}
        kept = [check for check in self.checks if check.name not in names]
        return Preflight(checks=(*later.checks, *kept), under=later.under)

    @classmethod
    def read(cls, folder: Path) -> "Preflight":
        """What a stage left in its run directory; no checks where it left nothing."""
        path = folder / PREFLIGHT
        return cls.model_validate_json(path.read_text()) if path.exists() else cls(checks=())
