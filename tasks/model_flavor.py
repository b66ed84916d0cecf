"""What MLflow keeps of a model: code to load it, a signature, an example, and where its weights are."""

import base64
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema
from packaging.version import Version
from PIL import Image

from models.config import Preset
from models.evidence import Evidence
from models.records import png_bytes
from tasks.artifacts import ArtifactRef
from tasks.model_source import MODEL_NAME
from tasks.settings import Settings
from tasks.tracking import logged_model

_CODE = Path(__file__).with_name("pyfunc_model.py")
_REQUIREMENTS = ("vlm-r3", "torch", "transformers", "mlflow")
SIGNATURE = ModelSignature(
    # Bytes or text, for which MLflow's schema has no other word.
    inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(DataType.string, "question")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "answer", required=False),
            ColSpec(DataType.string, "rationale"),
            ColSpec(Array(Array(DataType.double)), "boxes"),
            ColSpec(DataType.double, "confidence", required=False),
            ColSpec(DataType.string, "stop"),
        ]
    ),
)


def log_flavor(
    client: MlflowClient, weights: ArtifactRef, preset: Preset, evidence: Evidence, *, run_id: str
) -> str:
    """The id of the logged model that loads ``weights`` from the artifact store by itself; the evidence is
    repeated beside it, for people.

    It is the one to which an evaluation of these weights has linked its numbers, else a new one of the run.
    """
    settings = Settings.read()
    # A version whose source is a logged model is looked up at MLflow's global address, not the client's.
    mlflow.set_tracking_uri(settings.tracking_uri)
    model_id = logged_model(
        settings,
        name=MODEL_NAME,
        digest=weights.sha256,
        tags={"model_uri": weights.uri},
        run_id=run_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            python_model=str(_CODE),
            model_config={
                "weights": weights.model_dump(),
                "look": preset.look.model_dump(mode="json"),
                "engine": preset.engine.model_dump(mode="json"),
            },
            signature=SIGNATURE,
            input_example=_example(),
            # This project must be installed where the model is loaded, in the version that trained it.
            pip_requirements=[f"{name}=={Version(version(name)).public}" for name in _REQUIREMENTS],
        )
        # One logged model may have several versions, each with evidence of its own.
        shown = Path(folder, "model", "evidence", evidence.identity()[:12])
        shown.mkdir(parents=True)
        evidence.write(shown)
        client.log_model_artifacts(model_id, f"{folder}/model")
    return model_id


def _example() -> pd.DataFrame:
    picture = base64.b64encode(png_bytes(Image.new("RGB", (56, 56), "red"))).decode()
    return pd.DataFrame([{"image": f"data:image/png;base64,{picture}", "question": "What colour is it?"}])
