"""Settings that keep the policy near the weights it came from: KL penalty, importance weights, and limits that end
RLHF."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.recipe.base import Positive, PositiveFloat, Section, Share
from cluster.recipe.rlhf.presets import Estimator, Place


class Kl(Section):
    """The penalty on the policy's KL divergence from the fine-tuned model."""

    coefficient: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="weight of the penalty; 0: none, and the fine-tuned model is not computed; unset: 0 for dr_grpo, "
        "dapo and gspo, 0.01 for reinforce++ with and without baseline, 0.02 for ppo, 0.03 for rloo, 0.04 for grpo",
    )
    charged_in: Place | None = Field(
        None,
        description="subtract the penalty from the reward, or add it to the loss; unset: the reward for ppo, rloo and "
        "reinforce++, the loss for the others",
    )
    estimator: Estimator | None = Field(
        None,
        description="estimator of the divergence (Schulman 2020, joschu.net/blog/kl-approx.html), with charged_in set. "
        "k1 follows the gradient of an answer's divergence; k2 in the loss that of each token by itself, k3 in the "
        "loss about that of the reverse divergence. Unset: k1, and for reinforce++-baseline k2",
    )
    target: PositiveFloat | None = Field(
        None,
        description="divergence in nats per answer that the coefficient is adapted towards after each step (Ziegler "
        "et al. 2019); unset: constant coefficient",
    )

    @model_validator(mode="after")
    def _estimator_fits(self) -> "Kl":
        if self.estimator and not self.charged_in:
            raise ValueError("estimator needs charged_in, which decides which estimators fit: set charged_in too")
        return self


class Importance(Section):
    """Correction of tokens that other weights, or another precision, drew than those that learn from them.

    A token's importance weight is its probability under the learner's policy over that under the weights that drew it.
    """

    method: Literal["truncate", "mask"] = Field(
        "truncate",
        description="truncate: cut weights at max (Yao et al. 2025, TIS); mask: leave tokens out whose weight is not "
        "between min and max (masked importance sampling; with min 0.5 and max 5 IcePop, Ling team 2025)",
    )
    max: Annotated[float, Field(ge=1)] = Field(2.0, description="the largest importance weight of a token")
    min: Share = Field(0.0, description="the smallest importance weight of a token, for method mask")

    @model_validator(mode="after")
    def _min_is_for_masks(self) -> "Importance":
        if self.min and self.method != "mask":
            raise ValueError(
                "min is for method mask: a small weight that is raised would count tokens that it must not"
            )
        return self


class Stop(Section):
    """Limits on the policy. Beyond one, RLHF ends and keeps the last policy within all of them; unset: no limit."""

    max_kl: PositiveFloat | None = Field(
        None, description="largest KL divergence from the fine-tuned model, in nats per answer"
    )
    min_entropy: PositiveFloat | None = Field(None, description="smallest entropy of the policy, in nats per token")
    max_repetition: Share | None = Field(
        None, description="largest share of an answer's 3-token runs that occurred earlier in it"
    )
    max_length_change: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="largest ratio between the mean lengths of the policy's and the fine-tuned model's answers, "
        "either way",
    )
    min_preference_accuracy: Share | None = Field(
        None,
        description="smallest share of the held-out rankings' pairs in which the policy has shifted probability to the "
        "better answer; the upper end of its 95 % interval is compared. Needs rankings",
    )
    overoptimization: Share | None = Field(
        None,
        description="largest divergence of the answers' tokens from the fine-tuned model's, in bits (Jensen-Shannon, "
        "mean of 3 steps), a sign that the reward is exploited; infra/docs/overoptimization.md says how well it tells",
    )
    probe_every: Positive = Field(10, description="steps between measurements for min_preference_accuracy")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return self.model_dump(exclude={"probe_every"}, exclude_none=True)
