"""The parts of a configuration that several stages share: the rules of looking, models, engines, judges."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, model_validator

from models.endpoints import check_no_password
from models.errors import ConfigError
from models.protocol import SYSTEM_PROMPT
from models.region import PixelBudget
from models.trajectory import TurnError

EMBEDDED_MODEL = Path(__file__).parent / "tiny" / "base"

CropSourceName = Literal["original", "low_resolution", "random_region", "blank", "none"]
CorruptionWay = Literal["replace", "perturb"]
Precision = Literal["float32", "bfloat16"]
# Fields of a chat request that not every endpoint takes.
RequestField = Literal["temperature", "stop", "seed"]
# Of AdamW: how much of a running mean stays.
Beta = Annotated[float, Field(ge=0, lt=1)]
# How a model is asked: with the look-again prompt, or directly.
Style = Literal["look-again", "direct"]


# The address of a server; a password in it would stand in every record of a run.
Endpoint = Annotated[str, AfterValidator(check_no_password)]


class Config(BaseModel):
    """Base of all configuration: immutable, no unknown keys, and no infinity, which JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _some_kind(kinds: dict[str, float]) -> dict[str, float]:
    if not sum(kinds.values()):
        raise ValueError("at least one kind of question needs a weight above 0")
    return kinds


# How often each kind of question is drawn, relative to the others.
Kinds = Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(_some_kind)]


class BoxCorruption(Config):
    """A share of the crops is cut elsewhere than asked (Figure 4 of the paper); the text keeps its box."""

    way: CorruptionWay = Field(
        description="'replace': the same size at a place that does not overlap; 'perturb': moved and scaled "
        "until the IoU with the asked box is below 0.5."
    )
    kept_share: float = Field(ge=0, le=1, description="Share of boxes that are cut where they were asked.")


class Look(Config):
    """The rules of looking again (paper 3.2, A.1). Sides are in seen pixels."""

    min_pixels: int = Field(3136, ge=1, description="Fewest pixels of a seen picture (paper A.1.1).")
    max_pixels: int = Field(1605632, ge=1, description="Most pixels of a seen picture (paper A.1.1).")
    pixel_factor: int = Field(
        28, ge=1, description="Seen sides are multiples of this: patch size x merge size."
    )
    max_crops: int = Field(6, ge=0, description="Crops per trajectory; asking for more ends it.")
    max_turns: int = Field(
        12, ge=1, description="Turns per trajectory: crop commands, refused ones too, and the answer."
    )
    max_sampled_tokens: int = Field(2048, ge=1, description="Sampled tokens per trajectory.")
    min_side: float = Field(
        4.0, ge=0, description="Shortest side of a box, seen pixels; shorter is too_small."
    )
    max_aspect_ratio: float = Field(
        100.0, ge=1, le=200, description="Longest side over shortest; more is refused."
    )
    repeated_iou: float = Field(
        0.95, gt=0, le=1, description="IoU with an earlier box that makes a box redundant."
    )
    end_on: frozenset[TurnError] = Field(
        frozenset(), description="Protocol errors that end; others are told."
    )
    crop_source: CropSourceName = Field(
        "original", description="What a box is answered with; others are ablations."
    )
    corruption: BoxCorruption | None = Field(
        None, description="Cut some crops elsewhere than asked (an analysis); none: cut all as asked."
    )
    system: str | None = Field(SYSTEM_PROMPT, description="System prompt (paper 3.2).")

    @field_serializer("end_on")
    def _in_order(self, end_on: frozenset[TurnError]) -> list[str]:
        """A set has no order of its own; a configuration file must not differ from run to run."""
        return sorted(end_on)

    @property
    def budget(self) -> PixelBudget:
        """The pixel budget as geometry wants it."""
        return PixelBudget(self.min_pixels, self.max_pixels, self.pixel_factor)

    @model_validator(mode="after")
    def _budget_is_possible(self) -> "Look":
        if not self.pixel_factor**2 <= self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels} must satisfy "
                f"pixel_factor^2 = {self.pixel_factor**2} <= min_pixels <= max_pixels"
            )
        return self

    @model_validator(mode="after")
    def _a_crop_can_be_answered_after(self) -> "Look":
        if self.max_crops and self.max_turns < 2:
            raise ValueError(
                f"max_turns {self.max_turns} leaves no turn to answer after a crop, and max_crops is "
                f"{self.max_crops}: allow at least 2 turns, or no crops"
            )
        return self


class ModelConfig(Config):
    """The base model."""

    path: str = Field(
        description="Folder in Hugging Face layout, or 'embedded' for the tiny model in this repository."
    )
    freeze_vision: bool = Field(
        True, description="Freeze vision tower and projector in both stages (paper A.2, A.3)."
    )
    licence: str = Field("", description="Licence note, kept with every registered version.")


class EngineConfig(Config):
    """The inference engine of rollouts and evaluation."""

    kind: Literal["vllm", "transformers", "http", "vllm-server"] = Field(
        "vllm",
        description="In process, in process, at an endpoint; or vLLM's own server, started for the run: any "
        "architecture that vLLM knows.",
    )
    dtype: Precision = Field("bfloat16", description="Weights and activations in the engine.")
    max_model_len: int = Field(8192, ge=64, description="Longest sequence, image tokens included.")
    max_num_seqs: int = Field(256, ge=1, description="Trajectories decoded together.")
    max_images: int = Field(8, ge=1, description="Pictures per sequence: the view and its crops.")
    kv_cache_gib: float = Field(
        0.0, ge=0, description="Key-value cache in GiB on CPU; 0 leaves it to the engine."
    )
    gpu_memory_utilization: float = Field(
        0.5, gt=0, lt=1, description="Share of GPU memory the engine may take."
    )
    enforce_eager: bool = Field(False, description="No graph capture: slower steps, quicker start.")
    num_threads: int = Field(0, ge=0, description="CPU threads; 0 leaves it to the library.")
    endpoint: Endpoint = Field("", description="Base URL for kind 'http', for example http://host:8000/v1.")
    served_model: str = Field("", description="Model name at the endpoint.")
    continuation: Literal["assistant", "user_turn"] = Field(
        "assistant",
        description="How an endpoint gets a crop: inside the reply (vLLM's server), or as a user message.",
    )
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What an endpoint calls the limit on sampled tokens (o1: the second)."
    )
    omit: frozenset[RequestField] = Field(
        frozenset(), description="Fields that an endpoint refuses; without 'stop' we cut the reply ourselves."
    )
    server_arguments: dict[str, str] = Field(
        {}, description="More arguments for kind 'vllm-server', without their dashes; '' is a bare switch."
    )
    server_start_seconds: float = Field(900.0, gt=0, description="Longest wait for 'vllm-server' to be up.")
    timeout_seconds: float = Field(120.0, gt=0, description="Longest wait for one reply of an endpoint.")
    max_tries: int = Field(5, ge=1, description="Tries per request at an endpoint: 429, 5xx, timeouts.")
    backoff_seconds: float = Field(1.0, gt=0, description="Wait before the second try; doubles after that.")

    @field_serializer("omit")
    def _in_order(self, omit: frozenset[str]) -> list[str]:
        return sorted(omit)

    @model_validator(mode="after")
    def _http_needs_an_endpoint(self) -> "EngineConfig":
        if self.kind == "http" and not (self.endpoint and self.served_model):
            raise ValueError("kind 'http' needs endpoint (base URL) and served_model")
        return self


class QuestionMix(Config):
    """How many questions of a set, and of which kinds."""

    num_questions: int = Field(ge=0, description="Size of the set.")
    kinds: dict[str, float] = Field(description="Relative weight of each kind of question.")


class JudgeConfig(Config):
    """A language model that helps to score published benchmarks; without an endpoint rules score alone."""

    endpoint: Endpoint = Field("", description="Base URL of a chat endpoint, with its /v1; empty: no judge.")
    served_model: str = Field("", description="Model name at the endpoint; part of the judge's version.")
    num_connections: int = Field(16, ge=1, description="Requests in flight together.")
    max_reply_tokens: int = Field(
        64, ge=1, description="Tokens of a reply; a judge that thinks first needs many more."
    )
    timeout_seconds: float = Field(60.0, gt=0, description="Longest wait for one reply.")
    max_tries: int = Field(5, ge=1, description="Tries per request: 429, 5xx, timeouts.")
    backoff_seconds: float = Field(1.0, gt=0, description="Wait before the second try; doubles after that.")

    @property
    def is_used(self) -> bool:
        """True when there is a judge."""
        return bool(self.endpoint)

    @model_validator(mode="after")
    def _whole_or_none(self) -> "JudgeConfig":
        if bool(self.endpoint) != bool(self.served_model):
            raise ValueError(
                f"endpoint {self.endpoint!r} with served_model {self.served_model!r}: a judge is a base URL "
                "and the name of a model that it serves"
            )
        return self


# Endings of files that hold pickled Python objects: loading one may run anything.
PICKLED = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


def resolve_model_path(path: str) -> Path:
    """The folder that a ``model_path`` means; ``embedded`` is the tiny base model of this repository.

    Raises ConfigError when it is not a model folder in Hugging Face layout, or holds pickled weights.
    """
    folder = EMBEDDED_MODEL if path == "embedded" else Path(path)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"Model path {path!r}: {folder} holds no config.json. Give a folder in Hugging Face layout, "
            "or 'embedded'."
        )
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise ConfigError(
            f"Model path {path!r}: {', '.join(pickled[:5])} could run code when loaded. Only safetensors are "
            "read: convert the weights, and remove what is pickled."
        )
    return folder
