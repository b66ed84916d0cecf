"""One frozen configuration object per stage, checked when built, refused when it has an unknown key.

A run is a preset: one complete YAML file in ``infra/runs/`` (:mod:`models.presets` reads it). Where a default
is the paper's, the section is named; every other default is our choice.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from models.errors import ConfigError
from models.protocol import SYSTEM_PROMPT
from models.region import PixelBudget
from models.trajectory import TurnError

EMBEDDED_MODEL = Path(__file__).parent / "tiny" / "base"

CropSourceName = Literal["original", "low_resolution", "random_region", "none"]
CorruptionWay = Literal["replace", "perturb"]
Precision = Literal["float32", "bfloat16"]
# Fields of a chat request that not every endpoint takes.
RequestField = Literal["temperature", "stop", "seed"]
# How a model is asked: with the look-again prompt, or directly.
Style = Literal["look-again", "direct"]


class Config(BaseModel):
    """Base of all configuration: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    max_turns: int = Field(12, ge=1, description="Stretches of generation per trajectory.")
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
    endpoint: str = Field("", description="Base URL for kind 'http', for example http://host:8000/v1.")
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


class VLIRConfig(Config):
    """Stage build_vlir: questions, teacher, rejection sampling, filters (paper 3.1, B)."""

    source: Literal["tiny"] = Field("tiny", description="Where questions come from: the drawn world.")
    num_questions: int = Field(
        2000, ge=1, description="Questions for the teacher, drawn from the training split."
    )
    kinds: dict[str, float] = Field(
        {"read": 0.6, "add": 0.25, "where": 0.15}, description="Mix of question kinds."
    )
    num_validation_questions: int = Field(
        200,
        ge=1,
        description="Questions of the validation split, for held-out records (SFT's validation loss).",
    )
    num_samples: int = Field(2, ge=1, description="Tries per question; the first accepted one is kept.")
    max_teacher_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens the teacher may write per try; characters where the teacher reports no tokens.",
    )
    box_jitter: float = Field(0.1, ge=0, description="Embedded teacher: spread of box corners, in box sides.")
    box_growth: float = Field(
        0.4,
        description="Embedded teacher: mean outward shift of each box edge, in box sides. Boxes larger than "
        "the object lose zoom to the pixel budget, so R-GRPO has something to improve.",
    )
    wrong_region_rate: float = Field(0.1, ge=0, le=1, description="Embedded teacher: looks at another card.")
    misread_rate: float = Field(0.05, ge=0, le=1, description="Embedded teacher: misreads what it sees.")
    needless_look_rate: float = Field(
        0.1, ge=0, le=1, description="Embedded teacher: looks when no look is needed."
    )
    muddled_rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Embedded teacher: right answer, rationale that repeats, contradicts, skips or rambles.",
    )
    junk_rate: float = Field(0.02, ge=0, le=1, description="Embedded teacher: breaks the format.")


class ValidationConfig(Config):
    """Stage validate: the Great Expectations gate before any accelerator."""

    min_records: int = Field(100, ge=1, description="Fewest accepted records.")
    min_acceptance: float = Field(
        0.2, ge=0, le=1, description="Smallest share of questions that gave a record."
    )


class SFTConfig(Config):
    """Stage sft (paper A.2)."""

    num_epochs: int = Field(3, ge=1, description="Passes over the records (paper A.2).")
    batch_size: int = Field(
        64, ge=1, description="Records per optimiser step, over all ranks (paper A.2: 2 x 8 x 4)."
    )
    tokens_per_micro_batch: int = Field(
        8192, ge=64, description="Token budget of one forward pass, padding included."
    )
    max_tokens: int = Field(8192, ge=64, description="Longer samples are dropped and counted, never cut.")
    learning_rate: float = Field(2e-7, gt=0, description="Peak (paper A.2).")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of steps with rising learning rate.")
    min_lr_ratio: float = Field(
        0.1, ge=0, le=1, description="Final over peak learning rate, cosine in between."
    )
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    precision: Precision = Field("bfloat16", description="Compute precision; master weights are float32.")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    num_ranks: int = Field(1, ge=1, description="Processes: one per GPU, or on CPU per core.")
    num_threads: int = Field(0, ge=0, description="CPU threads per rank; 0 leaves it to the library.")
    max_dropped: float = Field(0.05, ge=0, le=1, description="Largest share of records that may be dropped.")
    max_seconds: float = Field(
        0.0,
        ge=0,
        description="Train for this long, however many epochs it takes (equal-time controls); 0: num_epochs.",
    )
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _ranks_share_a_batch(self) -> "SFTConfig":
        if self.batch_size % self.num_ranks:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_ranks {self.num_ranks}: every rank "
                "takes an equal share of each batch"
            )
        return self


class RewardConfig(Config):
    """The four rewards of paper 3.3."""

    accuracy: float = Field(1.0, ge=0, description="Correct final answer.")
    format: float = Field(
        1.0, ge=0, description="Well-formed <think> and <answer>; none for a truncated trajectory."
    )
    validity: float = Field(0.5, ge=0, description="Per valid, non-redundant box.")
    validity_cap: float = Field(0.5, ge=0)
    length_per_character: float = Field(0.001, ge=0, description="Per character of reasoning.")
    length_cap: float = Field(0.25, ge=0)


class ObjectiveConfig(Config):
    """The R-GRPO objective (paper Eq. 1-3)."""

    aggregation: Literal["paper-eq2", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"] = (
        "paper-eq2"
    )
    advantage_scale: Literal["group", "batch", "none"] = Field(
        "group", description="What divides r - mean (Eq. 1)."
    )
    advantage_eps: float = Field(1e-4, gt=0, description="Added to the standard deviation.")
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)
    engine_weight_cap: float = Field(
        0.0, ge=0, description="Truncated importance weight engine to trainer; 0 is off."
    )
    mask_truncated: bool = Field(False, description="Leave truncated trajectories out of the loss.")


class RGRPOConfig(Config):
    """Stage rgrpo (paper 3.3, A.3)."""

    num_steps: int = Field(300, ge=1, description="Optimiser steps (paper A.3).")
    questions_per_step: int = Field(16, ge=1)
    group_size: int = Field(5, ge=2, description="Rollouts per question, M (paper A.3).")
    kinds: dict[str, float] = Field(
        {"read": 0.6, "add": 0.25, "where": 0.15}, description="Mix of question kinds."
    )
    temperature: float = Field(
        1.0, gt=0, le=2, description="Sampling temperature; also divides the trainer's logits."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Paper A.3.")
    warmup_steps: int = Field(5, ge=0)
    min_lr_ratio: float = Field(
        1.0, ge=0, le=1, description="Final over peak learning rate, cosine in between; 1 keeps it constant."
    )
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    tokens_per_micro_batch: int = Field(
        8192, ge=64, description="Token budget of one forward pass, padding included."
    )
    reward: RewardConfig = RewardConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    precision: Precision = "bfloat16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    num_ranks: int = Field(1, ge=1)
    num_threads: int = Field(0, ge=0)
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")
    max_mismatch_kl: float = Field(
        0.015, gt=0, description="Engine against trainer, k3, nats per token; more stops."
    )
    max_failed_share: float = Field(
        0.02, ge=0, le=1, description="Trajectories that we broke; more stops the run."
    )

    @model_validator(mode="after")
    def _ranks_share_the_questions(self) -> "RGRPOConfig":
        if self.questions_per_step % self.num_ranks:
            raise ValueError(
                f"questions_per_step {self.questions_per_step} must be a multiple of num_ranks "
                f"{self.num_ranks}: every rank rolls out and trains on an equal share of the questions"
            )
        return self


class EvaluationConfig(Config):
    """Stage evaluate: what is measured, on how many held-out questions."""

    num_questions: int = Field(600, ge=20, description="Held-out questions of the test split.")
    kinds: dict[str, float] = Field(
        {"read": 0.84, "add": 0.08, "where": 0.08}, description="Mix of question kinds."
    )
    num_samples: int = Field(8, ge=1, description="Samples per question for mean@k at temperature 1.")
    num_sampled_questions: int = Field(100, ge=0, description="Questions that are sampled num_samples times.")
    num_ablation_questions: int = Field(
        300, ge=20, description="Questions for each ablation of the final model."
    )
    num_ranks: int = Field(1, ge=1, description="Processes that share the questions, each with an engine.")
    num_threads: int = Field(0, ge=0, description="CPU threads per rank; 0 leaves it to the engine.")
    max_unscored_share: float = Field(
        0.01, ge=0, le=1, description="Attempts that we broke, per variant; more fails."
    )


class JudgeConfig(Config):
    """A language model that helps to score published benchmarks; without an endpoint rules score alone."""

    endpoint: str = Field("", description="Base URL of a chat endpoint, with its /v1; empty: no judge.")
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


class PromotionConfig(Config):
    """Stage promote: when the challenger becomes champion."""

    min_questions: int = Field(500, ge=1, description="Fewest paired questions.")
    min_gain: float = Field(
        0.0, description="Lower end of the paired-bootstrap 95 % interval must exceed this."
    )
    max_protocol_error_rate: float = Field(0.2, ge=0, le=1)


class ReportConfig(Config):
    """The page that every run ends with, and the traces that are kept beside it."""

    num_trajectories: int = Field(2000, ge=0, description="Most trajectories in the gallery.")
    max_megabytes: float = Field(
        12.0, gt=0, description="Room for the gallery's pictures in the page; fewer are shown beyond it."
    )
    num_traces: int = Field(
        24, ge=0, description="Trajectories that are also logged as MLflow traces, with their pictures."
    )
    price_per_process_hour: float = Field(
        0.0, ge=0, description="Price of a process (a GPU, or a CPU core) for an hour; 0: no price is shown."
    )

    @property
    def max_picture_bytes(self) -> int:
        """The room for pictures in bytes."""
        return int(self.max_megabytes * 1_000_000)


class Preset(Config):
    """A complete run."""

    name: str
    seed: int = 0
    look: Look
    model: ModelConfig
    engine: EngineConfig
    vlir: VLIRConfig
    validation: ValidationConfig
    sft: SFTConfig
    rgrpo: RGRPOConfig
    evaluation: EvaluationConfig
    judge: JudgeConfig = JudgeConfig()
    promotion: PromotionConfig
    report: ReportConfig = ReportConfig()
    controls: bool = Field(
        True, description="Also train the controls 'more SFT' and 'no SFT' and run the ablations."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "Preset":
        if self.engine.max_images < self.look.max_crops + 1:
            raise ValueError(
                f"engine.max_images {self.engine.max_images} must be at least look.max_crops + 1 = "
                f"{self.look.max_crops + 1}: the view and every crop share one sequence"
            )
        if self.look.max_sampled_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"look.max_sampled_tokens {self.look.max_sampled_tokens} must be below engine.max_model_len "
                f"{self.engine.max_model_len}"
            )
        if self.evaluation.num_questions < self.promotion.min_questions:
            raise ValueError(
                f"promotion.min_questions {self.promotion.min_questions} exceeds evaluation.num_questions "
                f"{self.evaluation.num_questions}: no version could ever be promoted"
            )
        if self.rgrpo.objective.engine_weight_cap and self.rgrpo.objective.aggregation == "paper-eq2":
            raise ValueError(
                "aggregation 'paper-eq2' (Eq. 2) has no engine weight; set engine_weight_cap to 0"
            )
        return self


def resolve_model_path(path: str) -> Path:
    """The folder that a ``model_path`` means; ``embedded`` is the tiny base model of this repository.

    Raises ConfigError when it is not a model folder in Hugging Face layout.
    """
    folder = EMBEDDED_MODEL if path == "embedded" else Path(path)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"Model path {path!r}: {folder} holds no config.json. Give a folder in Hugging Face layout, "
            "or 'embedded'."
        )
    return folder
