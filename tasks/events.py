"""What we tell Prefect's automations (infra/automations.yaml)."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.events import emit_event

from models.errors import GateError

GATE_REFUSED = "vlm-r3.gate.refused"


@contextmanager
def gate(name: str) -> Iterator[None]:
    """Tell when a block ends because this gate said no."""
    try:
        yield
    except GateError as error:
        tell_refusal(name, str(error))
        raise


def tell_refusal(name: str, reasons: str) -> None:
    """A gate said no: ``name`` is the stage's, ``reasons`` are for people."""
    resource = {"prefect.resource.id": f"vlm-r3.gate.{name}", "prefect.resource.name": name}
    emit_event(GATE_REFUSED, resource=resource, payload={"reasons": reasons})
