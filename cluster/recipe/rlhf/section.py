"""The recipe's section `rlhf`: the algorithm, its steps, the sections below it, and checks that they fit together."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.recipe.base import (
    CheckpointEvery,
    Lora,
    MicroBatchRows,
    PathKind,
    Positive,
    PositiveFloat,
    Precision,
    Probe,
    RecomputeActivations,
    Section,
    Share,
    Temperature,
)
from cluster.recipe.collect import ChatSource
from cluster.recipe.rlhf.fleet import FleetSettings
from cluster.recipe.rlhf.presets import PRESETS, AlgorithmSettings
from cluster.recipe.rlhf.regularization import Importance, Kl, Stop
from cluster.recipe.rlhf.rewards import EnvironmentSettings, Reward

# The parameters of vLLM, beside the temperature, that change the distribution which tokens are drawn from.
TRUNCATIONS = ("top_p", "top_k", "min_p")


class RolloutSampling(Section):
    """Sampling of the policy's answers."""

    @model_validator(mode="before")
    @classmethod
    def _whole_distribution(cls, given: Any) -> Any:
        for name in TRUNCATIONS:
            if isinstance(given, dict) and name in given:
                raise ValueError(
                    f"{name} is refused: answers would be drawn from a part of the distribution that the learner "
                    "computes whole, so that importance ratios and divergences would be wrong; use temperature"
                )
        return given

    samples_per_prompt: Positive = Field(8, description="answers sampled to each prompt of a step")
    temperature: Temperature = Field(1.0, description="sampling temperature: divides the logits")
    max_tokens: Positive = Field(
        32, description="the most tokens of an answer; with rlhf.environment, of all answers of a conversation together"
    )


class Rlhf(Section):
    """Reinforcement learning from human feedback (RLHF): each step samples answers, rewards them, updates the
    policy."""

    algorithm: Literal[
        "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++-baseline", "dapo", "gspo", "ppo", "distill"
    ] = Field(
        "grpo",
        description="policy-gradient algorithm, or distill: learning from a teacher; infra/docs/algorithms.md compares "
        "them",
    )
    teacher: Annotated[str | None, PathKind.MODEL] = Field(
        None,
        description="for algorithm distill: a model with the same tokens, whose folder is on this machine. The learner "
        "holds it, in float32; the plan takes it to be as large as the policy",
    )
    sources: list[ChatSource] = Field(
        [],
        description="prompts to train on, all of them; of a conversation, all before its last answer. Empty: the "
        "prompts of collect whose answers are ranked",
    )
    rewards: list[Reward] = Field(
        [Reward()],
        description="sources of rewards, whose weighted sum is the reward of an answer; none for algorithm distill",
    )
    environment: EnvironmentSettings | None = Field(
        None, description="conversations of several turns with a Python function; unset: one answer to each prompt"
    )
    steps: Positive = Field(40, description="steps of sampling, rewarding and updating")
    prompts_per_step: Positive = Field(
        16, description="prompts of a step; each gets rlhf.sampling.samples_per_prompt answers"
    )
    sampling: RolloutSampling = Field(RolloutSampling(), description="sampling of the policy's answers")
    kl: Kl = Field(Kl(), description="penalty on the KL divergence from the fine-tuned model")
    stop: Stop = Field(Stop(), description="limits on the policy at which RLHF ends, such as max_kl")
    fleet: FleetSettings = Field(FleetSettings(), description="numbers of actors, and asynchronous sampling")
    learning_rate: PositiveFloat = Field(
        5e-5,
        description="learning rate of AdamW, reached after the warm-up; low-rank adapters need one about ten times as "
        "high",
    )
    warmup_share: Share = Field(
        0.0,
        description="share of the steps, at the start, over which the rate rises linearly; AdamW's first updates move "
        "every weight by the whole rate, and answers that no sample gives any more cannot be learned again",
    )
    decay_share: Share = Field(0.0, description="share of the steps, at the end, over which the rate falls to 0")
    lora: Lora | None = Field(
        None, description="train low-rank adapters only, and send only them to the rollout actors; unset: all weights"
    )
    minibatches: Positive | None = Field(
        None,
        description="optimizer steps of each step, which split its samples; unset: the algorithm's, 1 for grpo, rloo, "
        "reinforce++ and reinforce++-baseline, 4 for gspo, 8 for ppo and dr_grpo, 16 for dapo",
    )
    micro_batch_rows: MicroBatchRows = 64
    recompute_activations: RecomputeActivations = False
    precision: Precision | None = Field(
        None,
        description="of matrix products in the learner; unset: that of the rollout actors, bfloat16 on GPUs and "
        "float32 on CPUs",
    )
    clip_range: PositiveFloat | None = Field(
        None, description="probability ratios are clipped to 1 ± this; unset: the algorithm's, 3e-4 for gspo, else 0.2"
    )
    clip_range_high: PositiveFloat | None = Field(
        None,
        description="upper side of clip_range, where it differs (DAPO's clip-higher); unset: as clip_range, and where "
        "that is unset 0.28 for dapo and 4e-4 for gspo",
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None,
        description="upper bound of the probability ratio where the advantage is negative (Ye et al. 2020); "
        "unset: 3 for ppo, no bound for the others",
    )
    importance: Importance = Field(Importance(), description="correction of tokens that older weights drew")
    entropy_bonus: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the policy's entropy in the loss")
    reward_clip: PositiveFloat | None = Field(None, description="clip rewards to ± this; unset: no clipping")
    overlong_share: Share | None = Field(
        None,
        description="share of rlhf.sampling.max_tokens, at its end, over which a longer answer loses up to 1 of its "
        "reward (DAPO, Yu et al. 2025, eq. 13); unset: 0.2 for dapo, else 0",
    )
    mask_truncated: bool = Field(
        False,
        description="learn nothing from answers that were cut at rlhf.sampling.max_tokens (DAPO's overlong filtering, "
        "section 3.4); they still count in their prompt's mean reward",
    )
    dynamic_sampling: bool | None = Field(
        None,
        description="replace prompts whose answers all got one reward, which teach nothing (DAPO, section 3.2); with "
        "rlhf.fleet.max_staleness 0, more are sampled at once, by the share that was replaced in recent steps, and "
        "surplus prompts are sampled again in the next step; unset: true for dapo, else false",
    )
    pretrain_mix: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the pre-training loss, mixed in (PPO-ptx, Ouyang et al. 2022); needs corpus.sources"
    )
    max_failed_verdicts: Share = Field(
        0.1,
        description="largest share of failed rewards among the last 1,000 of answers; the run stops beyond it. An "
        "answer without a reward is left out, never rewarded with 0",
    )
    accept_probes: list[Probe] = Field(
        [], description="probes of the reward model that it may fail; RLHF refuses to start on any other failure"
    )
    checkpoint_every: CheckpointEvery = 10
    keep_checkpoints: Positive = Field(
        2, description="checkpoints that are kept; where the newest is damaged, training goes on from the one before it"
    )
    evaluate_every: Positive | None = Field(
        None,
        description="steps between measurements of the mean reward on held-out prompts, also taken before the first "
        "step and after the last; unset: none",
    )
    evaluation_prompts: Positive = Field(
        64,
        description="held-out prompts, at most, to measure on, one answer each; as long as there are enough, none of "
        "those of evaluate.prompts, which the report measures",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the policy to keep: of the last step, or of the measurement of evaluate_every with the highest "
        "mean reward",
    )
    promote_every: Positive | None = Field(
        None, description="steps between promotions of the policy to the run's running server; unset: none"
    )

    @field_validator("sources")
    @classmethod
    def _are_stored(cls, sources: list[ChatSource]) -> list[ChatSource]:
        if any(source.kind == "live" for source in sources):
            raise ValueError(
                "sources of kind live are for collect.sources; without rlhf.sources, RLHF trains on the ranked ones"
            )
        return sources

    @model_validator(mode="before")
    @classmethod
    def _a_teacher_needs_no_rewards(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("algorithm") == "distill" and "rewards" not in given:
            return {**given, "rewards": []}
        return given

    @model_validator(mode="after")
    def _taught_or_rewarded(self) -> "Rlhf":
        if self.algorithm != "distill":
            if self.teacher:
                raise ValueError(f"teacher is for algorithm distill, and algorithm is {self.algorithm}")
            if not self.rewards:
                raise ValueError("rewards needs at least 1 item")
            return self
        if not self.teacher:
            raise ValueError("distill needs teacher, the folder of a model with the same tokens")
        unfit = {
            "rewards": self.rewards,
            "kl": self.kl != Kl(),
            "stop.max_kl": self.stop.max_kl,
            "dynamic_sampling": self.dynamic_sampling,
            "overlong_share": self.overlong_share,
            "evaluate_every": self.evaluate_every,
        }
        if found := [name for name, value in unfit.items() if value]:
            raise ValueError(f"distill learns from the teacher alone: leave {', '.join(found)} out")
        return self

    @model_validator(mode="after")
    def _groups(self) -> "Rlhf":
        samples = self.sampling.samples_per_prompt
        if self.algorithm not in ("ppo", "reinforce++", "distill") and samples < 2:
            raise ValueError(
                f"{self.algorithm} compares samples of one prompt: set sampling.samples_per_prompt to at least 2"
            )
        if self.minibatches and self.minibatches > self.prompts_per_step * samples:
            raise ValueError(
                "minibatches are more than the samples of a step, which are prompts_per_step * samples_per_prompt"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> "Rlhf":
        if self.keep == "best" and not self.evaluate_every:
            raise ValueError("keep: best needs rewards on held-out prompts: set evaluate_every")
        return self

    @model_validator(mode="after")
    def _target_has_a_start(self) -> "Rlhf":
        if self.kl.target and not self.resolved.kl_coefficient:
            raise ValueError("kl.target adapts kl.coefficient, whose first value must be above 0: set it")
        return self

    @model_validator(mode="after")
    def _environment_is_there(self) -> "Rlhf":
        own = [reward for reward in self.rewards if reward.kind == "environment"]
        if own and not self.environment:
            raise ValueError("a reward of kind environment needs rlhf.environment")
        if len(own) > 1:
            raise ValueError("rewards has more than one of kind environment: it gives one reward")
        return self

    @property
    def environment_weight(self) -> float | None:
        """The weight of the environment's own reward; None if it is not one of the rewards."""
        return next((reward.weight for reward in self.rewards if reward.kind == "environment"), None)

    @model_validator(mode="after")
    def _judged(self) -> "Rlhf":
        if self.stop.min_preference_accuracy is None:
            return self
        if not self.needs_reward_model:
            raise ValueError(
                "stop.min_preference_accuracy is measured on rankings, and without a reward model there are none"
            )
        if self.stop.probe_every >= self.steps:
            raise ValueError(
                "stop.min_preference_accuracy is measured every stop.probe_every steps: set that below steps"
            )
        return self

    @property
    def resolved(self) -> AlgorithmSettings:
        """The algorithm's preset, overridden by the values that the recipe sets."""
        given: dict[str, Any] = {
            "kl_coefficient": self.kl.coefficient,
            "kl_charged_in": self.kl.charged_in,
            "kl_estimator": self.kl.estimator,
            "minibatches": self.minibatches,
            "clip_range": self.clip_range,
            "clip_range_high": self.clip_range_high or self.clip_range,
            "dual_clip": self.dual_clip,
            "overlong_share": self.overlong_share,
            "dynamic_sampling": self.dynamic_sampling,
        }
        return replace(PRESETS[self.algorithm], **{name: value for name, value in given.items() if value is not None})

    @property
    def needs_reference(self) -> bool:
        """Whether every step computes the fine-tuned model, or the teacher: for a penalty on the divergence, or a limit
        of it."""
        return self.resolved.kl_coefficient > 0 or self.stop.max_kl is not None

    @property
    def needs_reward_model(self) -> bool:
        """Whether the reward model is one of the rewards, or PPO's critic starts from it."""
        return self.algorithm == "ppo" or any(reward.kind == "model" for reward in self.rewards)

    @property
    def reward_models(self) -> int:
        """The most actors that hold the reward model."""
        return self.fleet.reward_limit * sum(reward.kind == "model" for reward in self.rewards)

    @property
    def actors(self) -> int:
        """The most actors that hold a model: rollout actors, reward actors (at least one is planned) and learner."""
        return self.fleet.rollout_limit + max(1, self.reward_models) + self.fleet.learner_workers

    @property
    def devices(self) -> int:
        """The GPUs with which every one of these actors has its own, and an engine one for each of its workers."""
        return self.actors + self.fleet.rollout_limit * (self.fleet.tensor_parallel - 1)
