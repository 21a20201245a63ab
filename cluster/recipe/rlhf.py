"""The recipe's section on RLHF: algorithm, rewards, sampling, KL, limits at which it stops, and the fleet."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AnyHttpUrl, Field, TypeAdapter, model_validator

from cluster.recipe.base import (
    FunctionName,
    Lora,
    Positive,
    PositiveFloat,
    Precision,
    Probe,
    Section,
    Share,
    Temperature,
)


def _http_url(text: str) -> str:
    TypeAdapter(AnyHttpUrl).validate_python(text)
    return text


Url = Annotated[str, AfterValidator(_http_url)]


class Reward(Section):
    """What answers are rewarded for: the reward model, a Python function that checks them, or a server that does."""

    kind: Literal["model", "function", "http"] = Field("model", description="who gives the reward")
    function: FunctionName | None = Field(
        None, description="for kind function: module:function(question, answer) -> number"
    )
    url: Url | None = Field(None, description="for kind http: the protocol is in actors/rewards/http.py")
    weight: Annotated[float, Field(gt=-1000, lt=1000)] = Field(1.0, description="in the sum of all rewards")
    timeout_seconds: PositiveFloat = Field(
        60, description="for kinds function and http: most time for answers that are asked for together"
    )

    @model_validator(mode="after")
    def _every_kind_has_its_own(self) -> "Reward":
        for kind, value in (("function", self.function), ("http", self.url)):
            if (self.kind == kind) != (value is not None):
                needed = "function" if kind == "function" else "url"
                raise ValueError(f"a reward of kind {kind} needs a {needed}, and no other kind takes one")
        return self


class Environment(Section):
    """What goes on with the answers: conversations of several turns."""

    function: FunctionName = Field(description="module:function(question, answers) -> what is said next, or None")
    turns: Annotated[int, Field(ge=2)] = Field(4, description="the most answers in a conversation")


class RolloutSampling(Section):
    """How the policy's answers are drawn."""

    samples_per_prompt: Positive = Field(8, description="answers to each prompt of a step")
    temperature: Temperature = Field(1.0, description="divides the logits before an answer's tokens are drawn")
    max_tokens: Positive = Field(32, description="longest answer; with an environment, of all its turns together")


class Kl(Section):
    """The KL divergence from the fine-tuned model: where it is charged, and how it is estimated."""

    coefficient: Annotated[float, Field(ge=0)] = Field(0.02, description="weight of the divergence; 0 charges nothing")
    charged_in: Literal["reward", "loss"] | None = Field(
        None, description="unset: the reward for ppo, rloo and reinforce++, else the loss"
    )
    estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="Schulman 2020 (joschu.net/blog/kl-approx.html); unset: k1 in the reward, k3 in the loss"
    )
    target: PositiveFloat | None = Field(
        None, description="nats an answer that the coefficient is adapted towards (Ziegler et al. 2019)"
    )

    @model_validator(mode="after")
    def _estimator_fits(self) -> "Kl":
        if self.estimator and not self.charged_in:
            raise ValueError("estimator needs charged_in: which estimator fits depends on it")
        if (self.estimator, self.charged_in) == ("k1", "loss"):
            raise ValueError("estimator k1 in the loss has no gradient on average: use k2 or k3, or charged_in reward")
        if self.target and not self.coefficient:
            raise ValueError("target adapts the coefficient, which must be above 0 to begin with")
        return self


class Stop(Section):
    """Limits within which the policy is kept: beyond one, RLHF ends and keeps the last policy within all of them."""

    max_kl: PositiveFloat | None = Field(None, description="nats an answer from the fine-tuned model")
    min_entropy: PositiveFloat | None = Field(None, description="nats a token")
    max_repetition: Share | None = Field(
        None, description="of an answer's runs of three tokens, the share that stood in it before"
    )
    max_length_change: Annotated[float, Field(gt=1)] | None = Field(
        None, description="times as long, or as short, as the fine-tuned model's answers"
    )
    min_preference_accuracy: Share | None = Field(
        None,
        description="of held-out rankings' pairs, those in which the policy moved towards the better answer (the upper "
        "end of the 95 % interval)",
    )
    probe_every: Positive = Field(10, description="steps between measurements of min_preference_accuracy")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by their names."""
        return self.model_dump(exclude={"probe_every"}, exclude_none=True)


class FleetSettings(Section):
    """How many actors work on a step, and how far rollout actors may be ahead of the learner."""

    rollout_actors: Positive = Field(2, description="vLLM engines that draw answers")
    max_rollout_actors: Positive | None = Field(None, description="the fleet may grow to so many where that is faster")
    reward_actors: Positive = Field(1, description="of each of rewards; they share the answers of a step")
    max_reward_actors: Positive | None = Field(None, description="there may be so many while rewards hold the step up")
    learner_workers: Positive = Field(1, description="share the policy and its training (FSDP2)")
    max_staleness: Annotated[int, Field(ge=0, le=8)] = Field(
        0, description="weight versions a sample may be behind; 0 is synchronous and on-policy"
    )
    swap_in_flight: bool = Field(
        False, description="new weights reach long answers in the midst, which go on with them; needs max_staleness"
    )
    parity_every: Positive | None = Field(None, description="steps between comparisons of engine and learner")

    @model_validator(mode="after")
    def _least_to_most(self) -> "FleetSettings":
        if self.rollout_limit < self.rollout_actors:
            raise ValueError("max_rollout_actors is less than rollout_actors, with which the fleet starts")
        if self.reward_limit < self.reward_actors:
            raise ValueError("max_reward_actors is less than reward_actors, with which a run starts")
        if self.swap_in_flight and not self.max_staleness:
            raise ValueError("swap_in_flight makes answers of several versions of the weights: set max_staleness too")
        return self

    @property
    def rollout_limit(self) -> int:
        """The most rollout actors there may be, unless a person adds more."""
        return self.max_rollout_actors or self.rollout_actors

    @property
    def reward_limit(self) -> int:
        """The most actors there may be of each reward."""
        return self.max_reward_actors or self.reward_actors


class Rlhf(Section):
    """Reinforcement learning from rewards: algorithm, rewards and the size of a step."""

    algorithm: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "dapo", "gspo", "ppo"] = Field(
        "grpo", description="how rewards become advantages and losses; see infra/docs/rlhf.md"
    )
    rewards: Annotated[list[Reward], Field(min_length=1)] = Field([Reward()], description="added up by their weights")
    environment: Environment | None = Field(None, description="plays the user or a tool in conversations of many turns")
    steps: Positive = Field(40, description="each draws answers, rewards them and updates the policy")
    prompts_per_step: Positive = Field(16, description="each is answered sampling.samples_per_prompt times")
    sampling: RolloutSampling = Field(RolloutSampling(), description="how answers are drawn")
    kl: Kl = Field(Kl(), description="the charge for leaving the fine-tuned model")
    stop: Stop = Field(Stop(), description="limits at which the run ends, such as max_kl")
    fleet: FleetSettings = Field(FleetSettings(), description="how many actors, and how asynchronous")
    learning_rate: PositiveFloat = Field(5e-5, description="of AdamW; with lora about ten times as high")
    lora: Lora | None = Field(None, description="train adapters; they alone travel to the rollout actors")
    minibatches: Positive = Field(1, description="optimizer steps on each batch of samples")
    micro_batch_rows: Positive = Field(64, description="rows of one forward pass; does not change what is computed")
    precision: Precision | None = Field(
        None, description="of the learner's matrix products; unset: bfloat16 on GPUs, as rollout actors, else float32"
    )
    clip_range: PositiveFloat | None = Field(None, description="by default the algorithm's own, most often 0.2")
    clip_range_high: PositiveFloat | None = Field(None, description="upper side, where it differs (clip-higher)")
    entropy_bonus: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy in the loss")
    reward_clip: PositiveFloat | None = Field(None, description="largest size of a reward that counts")
    overlong_share: Share | None = Field(
        None, description="last part of sampling.max_tokens, in which the reward falls by 1 (DAPO, eq. 13)"
    )
    pretrain_mix: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the pre-training loss (PPO-ptx)")
    accept_probes: list[Probe] = Field([], description="probes that the reward model may fail and be followed")
    checkpoint_every: Positive = Field(10, description="steps between checkpoints: the most that a kill loses")
    promote_every: Positive | None = Field(None, description="steps after which the run's server gets the policy")

    @model_validator(mode="after")
    def _groups(self) -> "Rlhf":
        samples = self.sampling.samples_per_prompt
        if self.algorithm not in ("ppo", "reinforce++") and samples < 2:
            raise ValueError(
                f"{self.algorithm} compares samples of one prompt: sampling.samples_per_prompt must be at least 2"
            )
        if self.minibatches > self.prompts_per_step * samples:
            raise ValueError("minibatches are more than the samples of a step, prompts_per_step * samples_per_prompt")
        return self

    @model_validator(mode="after")
    def _judged(self) -> "Rlhf":
        if self.stop.min_preference_accuracy is None:
            return self
        if not self.needs_reward_model:
            raise ValueError("stop.min_preference_accuracy is measured on rankings, and rewards need none here")
        if self.stop.probe_every >= self.steps:
            raise ValueError("stop.min_preference_accuracy is measured every stop.probe_every steps: make it < steps")
        return self

    @property
    def needs_reward_model(self) -> bool:
        """Whether answers are rewarded by the reward model, or a critic starts from it."""
        return self.algorithm == "ppo" or any(reward.kind == "model" for reward in self.rewards)

    @property
    def reward_models(self) -> int:
        """The most actors there may be that hold the reward model."""
        return self.fleet.reward_limit * sum(reward.kind == "model" for reward in self.rewards)

    @property
    def actors(self) -> int:
        """The most there may be that hold a model: of rollouts, rewards (room for one at least) and the learner."""
        return self.fleet.rollout_limit + max(1, self.reward_models) + self.fleet.learner_workers
