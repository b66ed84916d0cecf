"""What a preset says about trust in R-GRPO: limits that end a run, and what is looked at before one."""

from pydantic import Field, model_validator

from models.base_config import Config


class GuardsConfig(Config):
    """Limits on how R-GRPO goes; one that is broken pauses the run (:mod:`models.rgrpo.guards`).

    The mean of the last ``window`` steps counts, of the probe's numbers that of the last ``probe_window``
    probes, once there are so many.
    """

    enabled: bool = Field(True, description="False: nothing is probed, and no limit but the trainer's own.")
    window: int = Field(10, ge=1, description="Steps whose mean is looked at.")
    min_crops: float = Field(
        0.05, ge=0, description="Crops per trajectory; a policy that had more has stopped to look."
    )
    max_all_wrong_share: float = Field(
        0.8, ge=0, le=1, description="Of the groups that have a gradient, those without a right answer."
    )
    max_truncated_share: float = Field(0.5, ge=0, le=1, description="Trajectories that a limit cut off.")
    min_entropy: float = Field(0.01, ge=0, description="Nats per token; less: the policy has collapsed.")
    max_entropy: float = Field(3.0, gt=0, description="Nats per token; more: the policy falls apart.")
    max_stale_kl: float = Field(
        0.05,
        gt=0,
        description="Policy against what its tokens were sampled with, k3, nats per token; more: it outruns "
        "its rollouts. Only with `overlap`. Measured: 0.007 at rates that learn well, 0.07 at one that "
        "does not (docs/training.md).",
    )
    max_box_drift: float = Field(
        3.0,
        ge=1,
        description="How many times larger or smaller boxes may become, by area, than in the first window.",
    )
    max_rounding_gain: float = Field(
        1.2,
        ge=1,
        description="How many times more pixels than in the first window crops may win when their sides are "
        "rounded to whole visual tokens: boxes that take just such sizes earn reward, not sight "
        "(docs/trust.md).",
    )
    probe_every: int = Field(
        20, ge=0, description="Steps between probes of what crops are worth; 0: none is made."
    )
    probe_questions: int = Field(32, ge=1, description="Held-out questions of a probe, asked twice.")
    probe_window: int = Field(
        3, ge=1, description="Probes whose mean is looked at: one of few questions says little."
    )
    min_crop_gain: float = Field(
        0.02,
        ge=-1,
        le=1,
        description="Accuracy with crops minus accuracy with blank ones; a policy that began with more, or "
        "came to more by twice the standard error, no longer uses what it sees.",
    )

    @model_validator(mode="after")
    def _some_entropy_is_allowed(self) -> "GuardsConfig":
        if self.min_entropy >= self.max_entropy:
            raise ValueError(
                f"min_entropy {self.min_entropy:g} must be below max_entropy {self.max_entropy:g}: every "
                "step would be outside"
            )
        return self


class PreflightConfig(Config):
    """What must hold on one real batch before R-GRPO is begun (:mod:`models.rgrpo.preflight`)."""

    enabled: bool = Field(True, description="False: R-GRPO begins without.")
    num_questions: int = Field(
        8, ge=1, description="Questions of the batch, over all ranks; M rollouts each."
    )
    max_zero_variance_share: float = Field(
        0.9, ge=0, le=1, description="Groups of equal rewards, which teach nothing."
    )
    max_reward_floor: float = Field(
        0.7,
        ge=0,
        le=1,
        description="What a wrong answer in full style earns, as a share of the highest reward (with the "
        "paper's weights 1.75 of 2.75).",
    )
