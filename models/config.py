"""One frozen configuration object per stage, checked when built, refused when it has an unknown key.

A run is a preset: one complete YAML file in ``infra/runs/`` (:mod:`models.presets` reads it). Where a default
is the paper's, the section is named; every other default is our choice.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from models.base_config import (
    EMBEDDED_MODEL,
    Beta,
    BoxCorruption,
    Config,
    CorruptionWay,
    CropSourceName,
    EngineConfig,
    JudgeConfig,
    Kinds,
    Look,
    ModelConfig,
    Precision,
    QuestionMix,
    RequestField,
    Style,
    resolve_model_path,
)
from models.errors import ConfigError
from models.guard_config import GuardsConfig, PreflightConfig
from models.objective_config import ObjectiveConfig, ProfileName, RewardConfig, with_profile
from models.retrain_config import RetrainConfig
from models.vlir_config import (
    FilterJudge,
    Prices,
    SourceConfig,
    TeacherConfig,
    ValidationConfig,
    VLIRConfig,
)

__all__ = [
    "EMBEDDED_MODEL",
    "BoxCorruption",
    "Config",
    "CorruptionWay",
    "CropSourceName",
    "EarlyStopMetric",
    "EngineConfig",
    "EvaluationConfig",
    "FilterJudge",
    "GuardsConfig",
    "JudgeConfig",
    "Look",
    "ModelConfig",
    "ObjectiveConfig",
    "Precision",
    "PreflightConfig",
    "Preset",
    "Prices",
    "PromotionConfig",
    "QuestionMix",
    "RGRPOConfig",
    "ReportConfig",
    "RequestField",
    "RewardConfig",
    "SFTConfig",
    "SourceConfig",
    "Style",
    "TeacherConfig",
    "VLIRConfig",
    "ValidationConfig",
    "resolve_model_path",
]


EarlyStopMetric = Literal["accuracy", "validation_loss"]


class SFTConfig(Config):
    """Stage sft (paper A.2)."""

    num_epochs: int = Field(3, ge=1, description="Passes over the records (paper A.2).")
    batch_size: int = Field(
        64,
        ge=1,
        description="Records per optimiser step, over all ranks (paper A.2: 2 x 8 x 4); the last step of an "
        "epoch takes what is left of it.",
    )
    tokens_per_micro_batch: int = Field(
        8192, ge=64, description="Token budget of one forward pass; samples are packed, without padding."
    )
    max_tokens: int = Field(8192, ge=64, description="Longer samples are dropped and counted, never cut.")
    learning_rate: float = Field(2e-7, gt=0, description="Peak (paper A.2).")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Share of steps with rising learning rate.")
    min_lr_ratio: float = Field(
        0.1, ge=0, le=1, description="Final over peak learning rate, cosine in between."
    )
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    precision: Precision = Field("bfloat16", description="Compute precision; master weights are float32.")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage.")
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of each layer and compute it again for its gradient: a third more "
        "computation, and room for long rows on a GPU. Changes no result.",
    )
    num_ranks: int = Field(1, ge=1, description="Processes: one per GPU, or on CPU per core.")
    num_threads: int = Field(0, ge=0, description="CPU threads per rank; 0 leaves it to the library.")
    max_dropped: float = Field(0.05, ge=0, le=1, description="Largest share of records that may be dropped.")
    max_seconds: float = Field(
        0.0,
        ge=0,
        description="Train for this long, however many epochs it takes (equal-time controls); 0: num_epochs.",
    )
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept; our choice.")
    check_every: int = Field(
        0, ge=0, description="Steps between checks on held-out data (loss, accuracy); 0: after each epoch."
    )
    accuracy_questions: int = Field(
        0, ge=0, description="Held-out questions answered greedily, looking again, in every check; 0: none."
    )
    early_stop_metric: EarlyStopMetric = Field(
        "validation_loss", description="What a check must improve; accuracy needs accuracy_questions."
    )
    early_stop_patience: int = Field(
        0,
        ge=0,
        description="Checks in a row without a better one that end the run; the best check's model is then "
        "the result. 0: never, the last model is. Not with max_seconds, whose time is the point.",
    )
    feature_memory_gib: float = Field(
        4.0,
        gt=0,
        description="The host's memory per rank for the features of pictures; what is more goes to files.",
    )
    feature_disk_gib: float = Field(
        32.0, ge=0, description="Room for files of features, all runs of a tower together; 0 keeps none."
    )

    @model_validator(mode="after")
    def _ranks_share_a_batch(self) -> "SFTConfig":
        if self.batch_size % self.num_ranks:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of num_ranks {self.num_ranks}: every rank "
                "takes an equal share of each batch"
            )
        return self

    @model_validator(mode="after")
    def _the_watched_metric_is_measured(self) -> "SFTConfig":
        if self.early_stop_patience and self.early_stop_metric == "accuracy" and not self.accuracy_questions:
            raise ValueError(
                "early_stop_metric 'accuracy' is never measured: set accuracy_questions, or watch "
                "'validation_loss'"
            )
        return self

    @property
    def stops_early(self) -> bool:
        """True when the best model of the run is kept, and the run may end before its last step."""
        return bool(self.early_stop_patience and not self.max_seconds)


class RGRPOConfig(Config):
    """Stage rgrpo (paper 3.3, A.3)."""

    num_steps: int = Field(300, ge=1, description="Optimiser steps (paper A.3).")
    questions_per_step: int = Field(16, ge=1)
    group_size: int = Field(5, ge=2, description="Rollouts per question, M (paper A.3).")
    kinds: Kinds = Field({"read": 0.6, "add": 0.25, "where": 0.15}, description="Mix of question kinds.")
    temperature: float = Field(
        1.0,
        ge=0.01,  # vLLM takes less for this much, and the trainer would divide by another number
        le=2,
        description="Sampling temperature; also divides the trainer's logits.",
    )
    learning_rate: float = Field(1e-6, gt=0, description="Paper A.3.")
    warmup_steps: int = Field(5, ge=0)
    min_lr_ratio: float = Field(
        1.0, ge=0, le=1, description="Final over peak learning rate, cosine in between; 1 keeps it constant."
    )
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    tokens_per_micro_batch: int = Field(
        8192, ge=64, description="Token budget of one forward pass, padding included."
    )
    profile: ProfileName = Field(
        "",
        description="Named values for reward and objective (models/objective_config.py), under what is said "
        "of them here; empty: the paper's, where nothing is said.",
    )
    reward: RewardConfig = RewardConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    precision: Precision = "bfloat16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    gradient_checkpointing: bool = Field(False, description="As sft.gradient_checkpointing.")
    num_ranks: int = Field(1, ge=1)
    num_threads: int = Field(0, ge=0)
    placement: Literal["colocate", "dedicated"] = Field(
        "colocate",
        description="Where a rank's engine is: 'colocate', in its process, on its device; 'dedicated', in a "
        "process of its own, on its GPU of `engine_devices`; on a CPU beside it.",
    )
    engine_devices: tuple[int, ...] = Field(
        (),
        description="GPUs of dedicated engines, one per rank of a host, as torch counts them; on CPU none.",
    )
    engine_timeout_seconds: float = Field(
        1800.0, gt=0, description="Longest wait for a dedicated engine: its start, a step's rollouts."
    )
    overlap: bool = Field(
        False,
        description="Sample the rollouts of the next step while this one is trained, with weights that are "
        "one update old then: the objective's ratio is taken against the log-probs that they were sampled "
        "with. Needs placement 'dedicated', and an objective with a ratio (not Eq. 2).",
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept; our choice.")
    max_mismatch_kl: float = Field(
        0.015, gt=0, description="Engine against trainer, k3, nats per token; more stops."
    )
    max_failed_share: float = Field(
        0.02, ge=0, le=1, description="Trajectories that we broke; more stops the run."
    )
    preflight: PreflightConfig = PreflightConfig()
    guards: GuardsConfig = GuardsConfig()

    def without_trust(self) -> "RGRPOConfig":
        """The same training, neither looked at before nor watched: what a control wants, and a name."""
        return self.model_copy(
            update={"preflight": PreflightConfig(enabled=False), "guards": GuardsConfig(enabled=False)}
        )

    def require_fit_with(self, engine: EngineConfig) -> None:
        """Raise ConfigError where a rollout of this engine, which alone bounds it for certain, may become
        longer than a micro-batch: it would end the run late, and again whenever the run goes on. Or where
        ranks that share one sharded policy would sample from it, each as many times as it needs to."""
        alone = self.zero_stage < 3 or self.num_ranks == 1 or self.placement == "dedicated"
        if engine.kind == "transformers" and not alone:
            raise ConfigError(
                "engine.kind 'transformers' cannot sample from a policy that rgrpo.zero_stage 3 shards over "
                f"{self.num_ranks} ranks: each would wait for the others' passes. Use 'vllm', a lower stage, "
                "or rgrpo.placement=dedicated."
            )
        if self.tokens_per_micro_batch < engine.max_model_len:
            raise ConfigError(
                f"rgrpo.tokens_per_micro_batch {self.tokens_per_micro_batch} must be at least "
                f"engine.max_model_len {engine.max_model_len}: a rollout may become that long, and is "
                "trained on whole. Raise the first, or lower the second, which ends longer rollouts."
            )

    @model_validator(mode="before")
    @classmethod
    def _takes_its_profile(cls, values: Any) -> Any:
        return with_profile(values)

    @model_validator(mode="after")
    def _the_placement_is_possible(self) -> "RGRPOConfig":
        if self.engine_devices and self.placement == "colocate":
            raise ValueError(
                f"engine_devices {list(self.engine_devices)} are for placement 'dedicated'; with 'colocate' "
                "an engine shares its rank's device: leave them out"
            )
        if self.overlap and self.placement == "colocate":
            raise ValueError(
                "overlap needs placement 'dedicated': with 'colocate' engine and trainer take turns"
            )
        if self.overlap and self.objective.aggregation == "paper-eq2":
            raise ValueError(
                "overlap does not go with aggregation 'paper-eq2': Eq. 2 is strictly on-policy, and rollouts "
                "that are one update old would bias it. Choose a profile whose objective has a ratio "
                "('standard', 'released'), or leave overlap off"
            )
        return self

    def sampled_by(self, step: int) -> int:
        """The version of the weights (so many updates) with which the rollouts of a step are sampled."""
        return max(step - 1, 0) if self.overlap else step

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
    kinds: Kinds = Field({"read": 0.84, "add": 0.08, "where": 0.08}, description="Mix of question kinds.")
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


class PromotionConfig(Config):
    """Stage promote: when the challenger becomes champion."""

    min_questions: int = Field(500, ge=1, description="Fewest paired questions.")
    min_gain: float = Field(
        0.0, description="Lower end of the paired-bootstrap 95 % interval must exceed this."
    )
    max_kind_loss: float = Field(
        0.05, ge=0, le=1, description="Most that any kind of question may lose in accuracy."
    )
    max_benchmark_loss: float = Field(
        0.02, ge=0, le=1, description="Most that any published benchmark measured for both may lose."
    )
    max_protocol_error_rate: float = Field(0.2, ge=0, le=1)
    max_seconds_per_question: float = Field(
        60.0, gt=0, description="Longest mean time of an answer in the evaluation, queue included."
    )


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
    seed: int = Field(0, ge=0)
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
    retrain: RetrainConfig = RetrainConfig()
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
        return self
