"""What the child processes read from their run directories: one frozen object each, on the parts of a preset.

A parent resolves a preset into one of these (``config.json`` of the run); the child knows no preset.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from models.answer_rules import AnswerRule
from models.config import (
    BoxCorruption,
    Config,
    CorruptionWay,
    CropSourceName,
    EngineConfig,
    EvaluationConfig,
    JudgeConfig,
    Look,
    QuestionMix,
    ReportConfig,
    RGRPOConfig,
    SFTConfig,
    Style,
    ValidationConfig,
    VLIRConfig,
)


class VLIRRun(Config):
    """What the build_vlir child process reads from its run directory: every path in it is local."""

    vlir: VLIRConfig
    look: Look
    engine: EngineConfig = Field(description="The teacher's engine, where it is an engine.")
    seed: int
    rgrpo_questions: QuestionMix
    evaluation_questions: QuestionMix
    sources_digest: str = Field(
        "", description="Of the files as they were found; another one, another build."
    )


class ValidationRun(Config):
    """What the validation child process reads from its run directory."""

    records_path: str = Field(description="The folder that build_vlir made.")
    validation: ValidationConfig
    previous_path: str = Field(
        "", description="statistics.json that validating the previous version left; empty: there is none."
    )


_HOW_IT_IS_RUN = (
    *("num_ranks", "num_threads", "zero_stage", "gradient_checkpointing"),
    *("checkpoint_every", "keep_checkpoints"),
    *("feature_memory_gib", "feature_disk_gib"),
    *("placement", "engine_devices", "engine_timeout_seconds"),
    *("max_mismatch_kl", "max_failed_share"),  # limits that end a run, and change nothing while they hold
)


def _on_any_machine(config: SFTConfig | RGRPOConfig) -> dict[str, Any]:
    """The defaults of what decides how a stage is run, not what it comes to."""
    fields = type(config).model_fields
    return {name: fields[name].default for name in _HOW_IT_IS_RUN if name in fields}


class SFTRun(Config):
    """What the SFT child process reads from its run directory."""

    model_path: str
    records_path: str
    validation_path: str = Field("", description="Held-out records for the validation loss; empty for none.")
    questions_path: str = Field(
        "", description="Held-out questions for the accuracy; empty takes those of the validation records."
    )
    features_path: str = Field(
        "", description="Folder that keeps features of pictures between runs; empty keeps them in memory."
    )
    look: Look
    sft: SFTConfig
    freeze_vision: bool
    seed: int

    def anywhere(self) -> "SFTRun":
        """The same run as any machine may go on with it: without paths, whose content names it, and ranks."""
        names = ("model_path", "records_path", "validation_path", "questions_path", "features_path")
        here = dict.fromkeys(names, "")
        return self.model_copy(update={**here, "sft": self.sft.model_copy(update=_on_any_machine(self.sft))})


class RGRPORun(Config):
    """What the R-GRPO child process reads from its run directory."""

    model_path: str
    questions_path: str
    probe_path: str = Field("", description="Held-out questions of the guards' probe; empty for no probe.")
    look: Look
    rgrpo: RGRPOConfig
    engine: EngineConfig
    freeze_vision: bool
    seed: int

    def anywhere(self) -> "RGRPORun":
        """As :meth:`SFTRun.anywhere`; a run that a guard has paused goes on under other limits too."""
        here = {"model_path": "", "questions_path": "", "probe_path": ""}
        trained = self.rgrpo.without_trust()
        rgrpo = trained.model_copy(update=_on_any_machine(trained))
        return self.model_copy(update={**here, "rgrpo": rgrpo})


class EvaluationVariant(Config):
    """One row of the results: a model, and how its crop commands are answered."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="Short name: file name, metric name.")
    label: str = Field("", description="Name for people; empty takes the short name.")
    model_path: str = Field(description="Folder in Hugging Face layout, or 'embedded'.")
    style: Style = Field(
        "look-again",
        description="'direct' asks the bare question, no system prompt and no crops: the whole text counts.",
    )
    crop_source: CropSourceName = "original"
    corruption: BoxCorruption | None = None
    num_questions: int = Field(ge=1, description="Held-out questions, answered greedily.")
    num_sampled_questions: int = Field(0, ge=0, description="How many are also sampled at temperature 1.")

    @model_validator(mode="after")
    def _samples_are_among_the_questions(self) -> "EvaluationVariant":
        if self.num_sampled_questions > self.num_questions:
            raise ValueError(
                f"variant {self.name!r}: num_sampled_questions {self.num_sampled_questions} exceeds "
                f"num_questions {self.num_questions}"
            )
        return self


class EvaluationRun(Config):
    """What the evaluation child process reads from its run directory; one engine per architecture."""

    variants: tuple[EvaluationVariant, ...] = Field(min_length=1, description="The rows, in order.")
    comparisons: tuple[tuple[str, str], ...] = Field(
        (), description="Pairs (new, old) of variant names whose accuracies are compared, paired by question."
    )
    questions_path: str
    look: Look
    engine: EngineConfig
    evaluation: EvaluationConfig
    seed: int

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> "EvaluationRun":
        names = [variant.name for variant in self.variants]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"variants {repeated} occur more than once; each needs a name of its own")
        unknown = sorted({name for pair in self.comparisons for name in pair} - set(names))
        if unknown:
            raise ValueError(f"comparisons name variants {unknown}, which are not measured: {names}")
        return self


class DirectPrompt(Config):
    """What style 'direct' adds to the benchmark's usual prompt for a model with a form of its own."""

    system: str | None = Field(None, description="System prompt.")
    template: str = Field("{question}", description="What is asked; {question} is the benchmark's prompt.")
    answer: AnswerRule = Field("whole", description="Where the answer stands in the text.")

    @model_validator(mode="after")
    def _asks_the_question(self) -> "DirectPrompt":
        if self.template.count("{question}") != 1:
            raise ValueError(f"template {self.template!r} must have {{question}} once, where the prompt goes")
        return self

    def ask(self, prompt: str) -> str:
        """The text that is asked. Only the one mark is replaced: prompts are full of braces."""
        return self.template.replace("{question}", prompt)


class BenchmarkRun(Config):
    """What the child process that runs a benchmark reads from its run directory."""

    benchmark: str = Field(description="Name of the benchmark, as in models/benchmarks/.")
    data_path: str = Field(description="Folder of the published Parquet files.")
    split: str = Field(description="Split as the benchmark's module names it.")
    data_digest: str = Field("", description="What the digest of the set must be; empty accepts any.")
    allow_partial: bool = Field(False, description="Measure even when rows are missing; the report says so.")
    variant: str = Field(
        "full", description="Name of the way in which `look` answers crop commands (evaluation/variants.py)."
    )
    style: Style = Field(
        "look-again",
        description="'direct' asks the benchmark's usual prompt: no system prompt, no crops, whole text.",
    )
    model_path: str = Field(
        "", description="Folder in Hugging Face layout, or 'embedded'; empty when an endpoint answers."
    )
    model_source: str = Field(
        "", description="What the folder is a copy of: models:/vlm-r3/NUMBER, or s3://; empty for itself."
    )
    model_name: str = Field("", description="The model's name in tables; empty takes its folder or endpoint.")
    direct: DirectPrompt = DirectPrompt()
    look: Look
    engine: EngineConfig
    max_unscored_share: float = Field(0.01, ge=0, le=1, description="Rows that we broke; more fails.")
    report: ReportConfig = ReportConfig()
    judge: JudgeConfig = JudgeConfig()
    verdicts_path: str = Field(
        "", description="Folder that keeps a judge's verdicts; empty: in the run directory."
    )
    seed: int

    @property
    def without_judge(self) -> "BenchmarkRun":
        """The same run scored by the rule alone: all that decides what the model is asked and answers."""
        return self.model_copy(update={"judge": JudgeConfig(), "verdicts_path": ""})

    @model_validator(mode="after")
    def _somebody_answers(self) -> "BenchmarkRun":
        if (self.engine.kind == "http") == bool(self.model_path):
            raise ValueError(
                f"engine.kind {self.engine.kind!r} with model_path {self.model_path!r}: an endpoint serves a "
                "model of its own, every other engine needs a model folder"
            )
        return self


class AnalysisRun(Config):
    """What the child process of an analysis of the paper reads from its run directory."""

    analysis: Literal["table2", "figure4", "figure5"]
    model_path: str = Field("", description="The model that it is about; empty when an endpoint answers.")
    base_path: str = Field("", description="Table 2: the model before any training; empty leaves it out.")
    sft_path: str = Field("", description="Table 2: the model without R-GRPO; empty leaves it out.")
    no_sft_path: str = Field("", description="Table 2: the model without VLIR fine-tuning; likewise.")
    questions_path: str = Field("", description="Held-out questions; empty when benchmarks are asked.")
    benchmarks: tuple[BenchmarkRun, ...] = Field((), description="Sets to ask instead, as `full` asks them.")
    num_questions: int = Field(
        ge=1, description="Held-out questions; of a benchmark, which is asked as a whole, only for figure 5."
    )
    levels: tuple[float, ...] = Field(
        (), description="Figure 4: grounding accuracies to bring about, 0 to 1."
    )
    ways: tuple[CorruptionWay, ...] = Field(
        ("replace", "perturb"), min_length=1, description="Figure 4: how a box is made to miss."
    )
    look: Look
    engine: EngineConfig
    evaluation: EvaluationConfig
    seed: int

    @model_validator(mode="after")
    def _something_is_asked(self) -> "AnalysisRun":
        if bool(self.questions_path) == bool(self.benchmarks):
            raise ValueError("an analysis asks either held-out questions or benchmarks")
        if self.questions_path and not self.model_path:
            raise ValueError("the held-out questions need a model folder; an endpoint answers benchmarks")
        return self
