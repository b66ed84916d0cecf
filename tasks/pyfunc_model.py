"""The registered model as MLflow loads it: ``mlflow.pyfunc.load_model("models:/vlm-r3@champion")``.

MLflow keeps this file, a signature and where the weights are; the weights themselves stay in the artifact
store, where they exist once, and are checked against their digest when they are loaded.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from models.config import EngineConfig, Look, resolve_model_path
from models.errors import EngineError
from models.inference import Answer, answer_of, picture_question
from models.region import Size
from models.rollout import rollout
from tasks.artifacts import ArtifactRef, store_of
from tasks.settings import Settings


class LookAgainModel(PythonModel):
    """Takes a table with ``image`` (bytes, path or data URI) and ``question``, gives one row for each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Fetch the weights and start an engine of plain transformers, which is quick to start."""
        from models.policy import load_policy
        from models.transformers_engine import TransformersEngine

        config = context.model_config
        weights = ArtifactRef.model_validate(config["weights"])
        self.look = Look.model_validate(config["look"])
        engine = EngineConfig.model_validate(config["engine"])
        folder = resolve_model_path(str(store_of(weights.uri, Settings.read()).fetch(weights)))
        self.engine = TransformersEngine(load_policy(folder, dtype=engine.dtype), engine)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer, rationale, boxes (pixels of the picture), confidence and stop reason of every row.

        Raises RecordError for a row without a readable picture, EngineError when the engine fails.
        """
        questions = [
            picture_question(image, text, id=str(place))
            for place, (image, text) in enumerate(
                zip(model_input["image"], model_input["question"], strict=True)
            )
        ]
        trajectories = rollout(self.engine, questions, look=self.look)
        for question, trajectory in zip(questions, trajectories, strict=True):
            if trajectory.stop.is_our_failure:
                raise EngineError(f"Row {question.id} was not answered: {trajectory.detail}")
        return pd.DataFrame(
            [
                _row(
                    answer_of(
                        trajectory,
                        [Size(question.width, question.height)],
                        self.look.budget,
                        self.engine.encoder.decode,
                    )
                )
                for question, trajectory in zip(questions, trajectories, strict=True)
            ]
        )


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.answer,
        "rationale": answer.rationale,
        "boxes": [list(box.corners) for box in answer.boxes],
        "confidence": answer.confidence,
        "stop": answer.stop,
    }


set_model(LookAgainModel())
