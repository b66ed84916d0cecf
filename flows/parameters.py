"""What flows take, in words: Prefect renders a deployment's form from these types, with choices and hints.

Prefect takes a parameter's own description from docstrings only, so ours go in beside the schema.
"""

from typing import Annotated, Any

from pydantic import Field

from models.presets import preset_names
from tasks.artifacts import ArtifactRef
from tasks.stage import StageOutput


def hint(description: str, **schema: Any) -> Any:
    """A description, and more JSON schema, for the form of a deployment."""
    return Field(json_schema_extra={"description": description, **schema})


# Choices of the form only: a command may also name a YAML file.
PresetName = Annotated[
    str, hint("Which run: a file of infra/runs where the worker is.", enum=list(preset_names()))
]
Overrides = Annotated[
    list[str] | None,
    hint(
        "Values that differ from the preset, as stage.key=value.", examples=[["seed=1", "sft.num_epochs=3"]]
    ),
]
Stages = Annotated[
    str,
    hint(
        "Where the stages run: empty for this process, or the name of their deployments. 'tiny' means "
        "build-vlir/tiny, sft/tiny and so on, each on its own work pool.",
        examples=["tiny"],
    ),
]
Data = Annotated[
    StageOutput | None, hint("What build-vlir made; empty to make it, or to take it from the cache.")
]
Model = Annotated[ArtifactRef | None, hint("The model to start from; empty for the usual one.")]
Models = Annotated[
    dict[str, StageOutput] | None, hint("What the training stages made, by row; empty to train them.")
]
Label = Annotated[str, hint("What this execution is called in reports; usually left as it is.")]
Parent = Annotated[str, hint("Id of the tracked run in MLflow to nest under; usually left empty.")]
Watched = Annotated[bool, hint("Whether preflight and guards may stop the training; not for controls.")]
