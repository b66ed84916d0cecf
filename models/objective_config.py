"""What R-GRPO rewards and optimises (paper 3.3), and the named profiles of both.

A profile is a whole set of values for ``rgrpo.reward`` and ``rgrpo.objective``. A preset names one
(``rgrpo.profile``); what it says beside the name wins over the profile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from models.base_config import Config

FormatRule = Literal["think-then-answer", "ends-with-answer"]
ValidityRule = Literal["shown", "parsed"]
LengthRule = Literal["all-reasoning", "shortest-stretch"]
ProfileName = Literal["", "paper", "released", "standard", "tiny"]


class RewardConfig(Config):
    """The four rewards of paper 3.3; what each rule asks is in :mod:`models.rgrpo.rewards`."""

    accuracy: float = Field(1.0, ge=0, description="Correct final answer.")
    format: float = Field(
        1.0, ge=0, description="Text that follows `format_rule`; none for a truncated trajectory."
    )
    format_rule: FormatRule = Field(
        "think-then-answer",
        description="'think-then-answer': one <think> block, then one <answer>, nothing else; "
        "'ends-with-answer': anything that ends with an <answer>.",
    )
    validity: float = Field(0.5, ge=0, description="Per box that counts by `validity_rule`.")
    validity_cap: float = Field(0.5, ge=0)
    validity_rule: ValidityRule = Field(
        "shown",
        description="'shown': boxes that were answered with a crop; 'parsed': distinct boxes that are JSON, "
        "usable or not, and none where one is broken.",
    )
    validity_needs_correct: bool = Field(False, description="Boxes earn only beside a correct answer.")
    length_per_character: float = Field(0.001, ge=0, description="Per character by `length_rule`.")
    length_cap: float = Field(0.25, ge=0)
    length_rule: LengthRule = Field(
        "all-reasoning",
        description="What counts: 'all-reasoning', or its 'shortest-stretch' between crop commands.",
    )


class ObjectiveConfig(Config):
    """The R-GRPO objective (paper Eq. 1-3)."""

    aggregation: Literal["paper-eq2", "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"] = (
        "paper-eq2"
    )
    advantage_scale: Literal["group", "batch", "none"] = Field(
        "group", description="What divides r - mean (Eq. 1): the group's std, that of all rewards, nothing."
    )
    advantage_eps: float = Field(1e-4, gt=0, description="Added to the standard deviation.")
    clip_low: float = Field(0.2, ge=0, lt=1)
    clip_high: float = Field(0.2, ge=0)
    engine_weight_cap: float = Field(
        0.0, ge=0, description="Truncated importance weight engine to trainer; 0 is off."
    )
    mask_truncated: bool = Field(False, description="Leave truncated trajectories out of the loss.")
    beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL to the starting model (Eq. 3, per token); 0 (A.3) loads no such model.",
    )

    @model_validator(mode="after")
    def _eq2_has_no_engine_weight(self) -> "ObjectiveConfig":
        if self.engine_weight_cap and self.aggregation == "paper-eq2":
            raise ValueError(
                f"aggregation 'paper-eq2' (Eq. 2) has no engine weight; set engine_weight_cap "
                f"{self.engine_weight_cap} to 0, or choose another aggregation"
            )
        return self


@dataclass(frozen=True, slots=True)
class Profile:
    """A named choice of rewards and objective; ``about`` says whose it is and where it departs."""

    about: str
    reward: RewardConfig
    objective: ObjectiveConfig


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "paper": Profile(
            about="Section 3.3 and Eq. 1-2 as written, beta 0 (A.3). What the paper leaves open is settled "
            "in models/rgrpo/rewards.py and advantages.py.",
            reward=RewardConfig(),
            objective=ObjectiveConfig(),
        ),
        "released": Profile(
            about="What the authors' code computes (github.com/justgogorunrun/VLM-R3, 76e2d8f, "
            "src/r1-v/src/open_r1: rgrpo.py, trainer/vllm_rgrpo_trainer.py). Its faults are not followed: "
            "it trains messages and line breaks of its own as if the model had written them, closes the "
            "answer of a text that a limit cut off and then rewards its format, takes the last line of a "
            "text without an answer for one, and compares in another way without a word when its judge (a "
            "model of 72B) fails. Here only sampled tokens are trained, truncated text earns no format, and "
            "one deterministic matcher decides, about what stands in <answer>.",
            reward=RewardConfig(
                format=0.5,
                format_rule="ends-with-answer",
                validity_rule="parsed",
                validity_needs_correct=True,
                length_per_character=0.01,
                length_cap=0.1,
                length_rule="shortest-stretch",
            ),
            objective=ObjectiveConfig(aggregation="seq-mean-token-mean"),
        ),
        "standard": Profile(
            about="The paper's rewards under the objective that has become usual since: every token of the "
            "global batch weighs the same and the clip leaves more room upwards (DAPO), what engine and "
            "trainer disagree on is corrected, truncated trajectories teach nothing, and the spread of the "
            "batch, not of the group, divides: see docs/decisions.md.",
            reward=RewardConfig(),
            objective=ObjectiveConfig(
                aggregation="token-mean",
                advantage_scale="batch",
                clip_high=0.28,
                engine_weight_cap=2.0,
                mask_truncated=True,
            ),
        ),
        "tiny": Profile(
            about="Measured on the embedded model: the paper's rewards with smaller weights for boxes and "
            "length, under the mean over trajectories of their mean over tokens (docs/decisions.md).",
            reward=RewardConfig(validity=0.1, validity_cap=0.1, length_per_character=0.0001),
            objective=ObjectiveConfig(aggregation="seq-mean-token-mean"),
        ),
    }
)


def with_profile(values: Any) -> Any:
    """The values of a stage ``rgrpo`` with those of the profile that they name under them.

    Anything that is not a mapping with a known profile is returned as it is: validation will refuse it.
    """
    if not isinstance(values, Mapping):
        return values
    name = values.get("profile")
    profile = PROFILES.get(name) if isinstance(name, str) else None
    if profile is None:
        return values
    return {
        **values,
        "reward": _over(profile.reward, values.get("reward", {})),
        "objective": _over(profile.objective, values.get("objective", {})),
    }


def _over(base: Config, explicit: Any) -> Any:
    """``base`` with what was said explicitly over it."""
    if isinstance(explicit, BaseModel):
        explicit = explicit.model_dump(exclude_unset=True)
    return {**base.model_dump(), **explicit} if isinstance(explicit, Mapping) else explicit
