"""Configuration of retraining: who teaches, and what becomes of what is there already."""

from typing import Literal

from pydantic import Field

from models.base_config import Config


class RetrainConfig(Config):
    """Flow retrain: training again when the sources have something new."""

    teacher: Literal["preset", "champion"] = Field(
        "preset",
        description="Who writes the rationales of new rows: vlir.teacher, or the champion of the registry "
        "(without one: vlir.teacher).",
    )
    keep_earlier: bool = Field(
        True,
        description="Go on from the data of the newest version of this preset: rows that are unchanged keep "
        "what they came to (vlir.ask_rejected_again asks rejected ones anew).",
    )
