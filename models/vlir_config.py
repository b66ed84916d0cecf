"""Configuration of the stages build_vlir and validate (paper 3.1, B): sources, teacher, judges, the gate."""

from typing import Any, Literal

from pydantic import Field, model_validator

from models.base_config import Config, Endpoint, EngineConfig, Kinds

SourceKind = Literal[
    "tiny",
    "manifest",
    "textvqa",
    "docvqa",
    "infographicvqa",
    "gqa",
    "vsr",
    "m3cot",
    "visual_cot",
]
# Which prompt of appendix B.1 the teacher gets.
PromptChoice = Literal["auto", "question", "box"]


class SourceConfig(Config):
    """Where questions come from: the drawn world, a public set's training split, or a manifest of one's own.

    ``data``, ``images``, ``scene_graphs`` and ``boxes`` are local paths or ``s3://`` prefixes.
    """

    kind: SourceKind = Field(description="What reads it.")
    data: str = Field("", description="The set's own files: a folder, or the file of a manifest.")
    images: str = Field(
        "", description="Folder of pictures, where the rows only name them (VSR, Visual CoT)."
    )
    scene_graphs: str = Field("", description="GQA: the scene graphs' JSON, for boxes.")
    boxes: str = Field(
        "", description="Visual CoT metadata (JSONL) to join: boxes for this source's questions."
    )
    buckets: str = Field(
        "", description="Local copies of pictures that rows name by s3://, in one folder per bucket."
    )
    name: str = Field("", description="What records call the source; empty: its kind.")
    licence: str = Field("", description="Licence note of every record; empty: the set's own.")
    prompt: PromptChoice = Field(
        "auto", description="Listing 1, Listing 2 (needs a box), or by whether a question has a box."
    )
    num_questions: int | None = Field(None, ge=1, description="At most so many questions; none: all.")

    @property
    def label(self) -> str:
        """What records call the source."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> "SourceConfig":
        if self.kind != "tiny" and not self.data:
            raise ValueError(f"source {self.kind!r} needs data: the folder, file or s3:// prefix to read")
        return self


class Prices(Config):
    """What an endpoint charges, in US dollars per million tokens; 0 where it is free or not known."""

    prompt: float = Field(0.0, ge=0, description="Per million prompt tokens, pictures included.")
    completion: float = Field(0.0, ge=0, description="Per million sampled tokens.")


class TeacherConfig(Config):
    """Who writes the rationales (paper 3.1.1).

    In a preset a string is enough: ``drawn-world``, an endpoint's base URL, or a model (a folder,
    ``models:/vlm-r3@champion``, ``s3://...``) for the in-process engine.
    """

    kind: Literal["drawn-world", "vllm", "http"] = Field(
        "drawn-world",
        description="The drawn world's own author; the in-process engine; an OpenAI-compatible endpoint.",
    )
    model: str = Field("", description="For vllm: embedded, a folder, models:/..., or s3://...")
    name: str = Field("", description="What records call the model; empty: as it was named.")
    engine: EngineConfig | None = Field(
        None, description="Endpoint, connections, tries, context; none: the preset's engine."
    )
    prompts: Literal["auto", "paper", "look-again"] = Field(
        "auto",
        description="Appendix B.1's listings, or the question under the student's own system prompt (for a "
        "model that was trained to look again). auto: look-again for a registered model, else the paper's.",
    )
    temperatures: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="Temperature of each try; the last one holds for all further tries."
    )
    prices: Prices = Prices()

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value == "drawn-world":
            return {"kind": value}
        if value.startswith(("http://", "https://")):
            raise ValueError(
                f"teacher {value!r}: an endpoint needs the name of a model, too. Write teacher: {{kind: "
                "http, engine: {kind: http, endpoint: URL, served_model: NAME}}, or give --teacher on the "
                "command line"
            )
        return {"kind": "vllm", "model": value}

    @model_validator(mode="after")
    def _is_whole(self) -> "TeacherConfig":
        if self.kind == "vllm" and not self.model:
            raise ValueError("teacher kind 'vllm' needs model: embedded, a folder, models:/... or s3://...")
        if self.kind == "http" and (self.engine is None or self.engine.kind != "http"):
            raise ValueError(
                "teacher kind 'http' needs engine: {kind: http, endpoint: ..., served_model: ...}"
            )
        return self

    def temperature(self, attempt: int) -> float:
        """The temperature of try number ``attempt``, from 0."""
        return self.temperatures[min(attempt, len(self.temperatures) - 1)]


class FilterJudge(Config):
    """A judge of generated rationales (paper 3.1.2): an endpoint, the drawn world's own rules, or nobody."""

    kind: Literal["drawn-world", "http", "none"] = Field(
        "drawn-world", description="Rules that know the drawn world; a model at an endpoint; not judged."
    )
    endpoint: Endpoint = Field("", description="Base URL of a chat endpoint, with its /v1.")
    served_model: str = Field("", description="Model name at the endpoint.")
    num_connections: int = Field(64, ge=1, description="Requests in flight together.")
    max_reply_tokens: int = Field(
        8, ge=1, description="Tokens of a reply; a judge that thinks first needs many more."
    )
    timeout_seconds: float = Field(60.0, gt=0, description="Longest wait for one reply.")
    max_tries: int = Field(5, ge=1, description="Tries per request: 429, 5xx, timeouts.")
    backoff_seconds: float = Field(1.0, gt=0, description="Wait before the second try; doubles after that.")
    prices: Prices = Prices()

    @model_validator(mode="after")
    def _is_whole(self) -> "FilterJudge":
        if (self.kind == "http") != bool(self.endpoint and self.served_model):
            raise ValueError(
                f"kind {self.kind!r} with endpoint {self.endpoint!r} and served_model {self.served_model!r}: "
                "kind 'http' needs both, the other kinds need neither"
            )
        return self


class VLIRConfig(Config):
    """Stage build_vlir: questions, teacher, rejection sampling, filters (paper 3.1, B)."""

    sources: tuple[SourceConfig, ...] = Field(
        (SourceConfig(kind="tiny"),), min_length=1, description="Where questions come from."
    )
    held_out: dict[str, str] = Field(
        {},
        description="Evaluation sets that must not be trained on: benchmark name to its folder or s3:// "
        "prefix. A shared picture or question is an error.",
    )
    earlier: str = Field(
        "",
        description="An earlier set to go on from: a folder, or an artifact's URI#DIGEST. Rows that are "
        "unchanged keep what they came to there. None: everybody is asked.",
    )
    ask_rejected_again: bool = Field(
        False, description="Ask again what nobody answered well for the earlier set; else it stays rejected."
    )
    validation_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of pictures, of any source but tiny, kept for validation records.",
    )
    test_share: float = Field(
        0.1, ge=0, lt=1, description="Share of pictures kept for evaluation alone; not for the drawn world."
    )
    num_questions: int = Field(
        2000, ge=1, description="Drawn world: questions for the teacher, from the training split."
    )
    kinds: Kinds = Field(
        {"read": 0.6, "add": 0.25, "where": 0.15}, description="Drawn world: mix of question kinds."
    )
    num_validation_questions: int = Field(
        200,
        ge=1,
        description="Drawn world: questions of the validation split, for held-out records (SFT's validation "
        "loss).",
    )
    teacher: TeacherConfig = TeacherConfig()
    semantic_unit: FilterJudge = Field(FilterJudge(), description="Who judges crops (Listing 3).")
    coherence: FilterJudge = Field(FilterJudge(), description="Who judges reasoning (Listing 4).")
    num_samples: int = Field(2, ge=1, description="Tries per question; the first accepted one is kept.")
    max_teacher_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens the teacher may write per try; characters where the teacher reports no tokens.",
    )
    max_picture_pixels: int = Field(
        100_000_000, ge=1, description="Most pixels of a source picture; more is never decoded."
    )
    max_picture_bytes: int = Field(50_000_000, ge=1, description="Most bytes of a source picture's file.")
    max_failed_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of tries that may fail for our reasons (teacher or judge unreachable); more stops "
        "the stage, which then goes on where it stopped.",
    )
    shard_size: int = Field(128, ge=1, description="Questions per shard: the unit of files and of resuming.")
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

    @property
    def is_drawn(self) -> bool:
        """True when every question comes from the drawn world."""
        return all(source.kind == "tiny" for source in self.sources)

    @model_validator(mode="after")
    def _sources_fit(self) -> "VLIRConfig":
        labels = [source.label for source in self.sources]
        if len(set(labels)) < len(labels):
            raise ValueError(f"sources {labels}: two have the same name; give one of them another by name")
        if self.teacher.kind == "drawn-world" and not self.is_drawn:
            raise ValueError(
                "teacher 'drawn-world' only knows the pictures it drew; name a teacher for the other sources"
            )
        if any(source.kind == "tiny" for source in self.sources) and not self.is_drawn:
            raise ValueError("source 'tiny' cannot be mixed with other sources: it has splits of its own")
        return self


class ValidationConfig(Config):
    """Stage validate: the Great Expectations gate before any accelerator. The bounds are our choice."""

    min_records: int = Field(100, ge=1, description="Fewest accepted records.")
    min_acceptance: float = Field(
        0.2, ge=0, le=1, description="Smallest share of questions that gave a record."
    )
    min_records_per_source: int = Field(1, ge=0, description="Fewest accepted records of every source.")
    min_question_characters: int = Field(1, ge=1, description="Shortest question, without outer blanks.")
    max_question_characters: int = Field(4000, ge=1, description="Longest question.")
    min_rationale_characters: int = Field(
        1, ge=0, description="Shortest reasoning, without tags and crop commands."
    )
    max_rationale_characters: int = Field(
        16000, ge=1, description="Longest reasoning, without tags and crop commands."
    )
    scripts: tuple[str, ...] = Field(
        ("LATIN",), description="Scripts of the letters, as Unicode names them (CYRILLIC, CJK); none: any."
    )
    min_script_share: float = Field(
        0.5, ge=0, le=1, description="Share of a text's letters in these scripts; names and quotes differ."
    )
    languages: tuple[str, ...] = Field(
        ("en",), description="Languages of questions and rationales (ISO 639-1); none: any."
    )
    min_language_share: float = Field(
        1.0, ge=0, le=1, description="Share of records whose texts must be in these scripts and languages."
    )
    max_size_drift: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest total-variation distance of crop sizes to the previous version.",
    )
    max_source_drift: float = Field(
        0.2,
        ge=0,
        le=1,
        description="The same of records by source; raise it where sources change on purpose.",
    )
    data_docs: bool = Field(
        False, description="Build Great Expectations' pages too; they load their styles from the network."
    )

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> "ValidationConfig":
        for name in ("question", "rationale"):
            low = getattr(self, f"min_{name}_characters")
            high = getattr(self, f"max_{name}_characters")
            if low > high:
                raise ValueError(f"min_{name}_characters {low} exceeds max_{name}_characters {high}")
        return self
