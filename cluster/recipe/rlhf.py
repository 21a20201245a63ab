"""The recipe's section on RLHF: algorithm, rewards, fleet and limits."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AnyHttpUrl, Field, TypeAdapter, model_validator

from cluster.recipe.base import Lora, Positive, PositiveFloat, Precision, Section, Share, Temperature

Probe = Literal["longer", "thanks", "refusal", "repetition", "empty"]


def _http_url(text: str) -> str:
    TypeAdapter(AnyHttpUrl).validate_python(text)
    return text


Url = Annotated[str, AfterValidator(_http_url)]

# The settings that limit how far the policy may go.
LIMITS = {
    "kl_budget",
    "minimum_entropy",
    "maximum_repetition",
    "maximum_length_change",
    "minimum_preference_accuracy",
}


class Reward(Section):
    """What answers are rewarded for: the reward model, a Python function that checks them, or a server that does."""

    kind: Literal["model", "function", "http"] = "model"
    function: str | None = Field(
        None, pattern=r"^[\w.]+:\w+$", description="for kind function: module:function(question, answer) -> number"
    )
    url: Url | None = Field(None, description="for kind http: see actors/rewards/http.py")
    weight: Annotated[float, Field(gt=-1000, lt=1000)] = 1.0
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

    function: str = Field(
        pattern=r"^[\w.]+:\w+$", description="module:function(question, answers) -> what is said next, or None"
    )
    turns: Annotated[int, Field(ge=2)] = Field(4, description="the most answers in a conversation")


class Rlhf(Section):
    algorithm: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "dapo", "gspo", "ppo"] = "grpo"
    rewards: Annotated[list[Reward], Field(min_length=1)] = Field([Reward()], description="added up by their weights")
    environment: Environment | None = Field(None, description="plays the user or a tool; max_tokens is for all turns")
    steps: Positive = 40
    prompts_per_step: Positive = 16
    samples_per_prompt: Positive = 8
    temperature: Temperature = 1.0
    max_tokens: Positive = 32
    learning_rate: PositiveFloat = 5e-5
    lora: Lora | None = Field(None, description="train adapters; they alone travel to the rollout actors")
    minibatches: Positive = Field(1, description="optimizer steps on each batch of samples")
    micro_batch_rows: Positive = 64
    clip_range: PositiveFloat | None = Field(None, description="by default the algorithm's own, most often 0.2")
    clip_range_high: PositiveFloat | None = Field(None, description="upper side, where it differs (clip-higher)")
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.02
    kl_in: Literal["reward", "loss"] | None = Field(None, description="reward for ppo, rloo, reinforce++; else loss")
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(None, description="k1 in the reward, k3 in the loss")
    kl_target: PositiveFloat | None = Field(None, description="nats an answer that kl_coefficient is adapted towards")
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    reward_clip: PositiveFloat | None = Field(None, description="largest size of a reward that counts")
    overlong_share: Share | None = Field(None, description="last part of max_tokens, in which the reward falls by 1")
    pretrain_mix: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the pre-training loss (PPO-ptx)")
    rollout_actors: Positive = 2
    most_rollout_actors: Positive | None = Field(None, description="the fleet may grow to so many where that is faster")
    precision: Precision | None = Field(
        None, description="of the learner's matrix products; unset: bfloat16 on GPUs, as rollout actors, else float32"
    )
    learner_workers: Positive = Field(1, description="share the policy and its training (FSDP2)")
    reward_actors: Positive = Field(1, description="of each of rewards; they share the answers of a step")
    most_reward_actors: Positive | None = Field(None, description="there may be so many while rewards hold the step up")
    max_staleness: Annotated[int, Field(ge=0, le=8)] = Field(0, description="weight versions a sample may be behind")
    swap_in_flight: bool = Field(
        False, description="new weights reach long answers in the midst, which go on with them; needs max_staleness"
    )
    checkpoint_every: Positive = 10
    accept_probes: list[Probe] = Field([], description="probes that the reward model may fail and be followed")
    kl_budget: PositiveFloat | None = Field(None, description="nats an answer from the fine-tuned model; then it ends")
    minimum_entropy: PositiveFloat | None = Field(None, description="nats a token; below, the run ends")
    maximum_repetition: Share | None = Field(
        None, description="of an answer's runs of three tokens, those that stood in it before; above, the run ends"
    )
    maximum_length_change: Annotated[float, Field(gt=1)] | None = Field(
        None, description="times as long, or as short, as the fine-tuned model's answers; beyond, the run ends"
    )
    minimum_preference_accuracy: Share | None = Field(
        None,
        description="of held-out rankings' pairs, those in which the policy moved towards the better answer (the upper "
        "end of the 95 % interval); below, the run ends",
    )
    probe_every: Positive = Field(10, description="steps between measurements of that accuracy")
    promote_every: Positive | None = Field(None, description="steps after which the run's server gets the policy")
    parity_every: Positive | None = Field(None, description="steps between comparisons of engine and learner")

    @model_validator(mode="after")
    def _groups(self) -> "Rlhf":
        if self.algorithm not in ("ppo", "reinforce++") and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares samples of one prompt: samples_per_prompt must be at least 2")
        if self.minibatches > self.prompts_per_step * self.samples_per_prompt:
            raise ValueError("minibatches are more than the samples of a step, prompts_per_step * samples_per_prompt")
        return self

    @model_validator(mode="after")
    def _divergence(self) -> "Rlhf":
        if self.kl_estimator and not self.kl_in:
            raise ValueError("kl_estimator needs kl_in: which estimator fits depends on it")
        if (self.kl_estimator, self.kl_in) == ("k1", "loss"):
            raise ValueError("kl_estimator k1 in the loss has no gradient on average: use k2 or k3, or kl_in reward")
        if self.kl_target and not self.kl_coefficient:
            raise ValueError("kl_target adapts kl_coefficient, which must be above 0 to begin with")
        return self

    @model_validator(mode="after")
    def _fleet(self) -> "Rlhf":
        if self.fleet_limit < self.rollout_actors:
            raise ValueError("most_rollout_actors is less than rollout_actors, with which the fleet starts")
        if self.most_reward_actors and self.most_reward_actors < self.reward_actors:
            raise ValueError("most_reward_actors is less than reward_actors, with which a run starts")
        if self.swap_in_flight and not self.max_staleness:
            raise ValueError("swap_in_flight makes answers of several versions of the weights: set max_staleness too")
        return self

    @model_validator(mode="after")
    def _judged(self) -> "Rlhf":
        if self.minimum_preference_accuracy is not None and not self.needs_reward_model:
            raise ValueError("minimum_preference_accuracy is measured on rankings, and rewards need none here")
        if self.minimum_preference_accuracy is not None and self.probe_every >= self.steps:
            raise ValueError("minimum_preference_accuracy is measured every probe_every steps: have fewer than steps")
        return self

    @property
    def needs_reward_model(self) -> bool:
        """Whether answers are rewarded by the reward model, or a critic starts from it."""
        return self.algorithm == "ppo" or any(reward.kind == "model" for reward in self.rewards)

    @property
    def limits(self) -> dict[str, float]:
        """Those of LIMITS that are set, by their names."""
        return self.model_dump(include=LIMITS, exclude_none=True)

    @property
    def fleet_limit(self) -> int:
        """The most rollout actors there may be, unless a person adds more."""
        return self.most_rollout_actors or self.rollout_actors

    @property
    def reward_limit(self) -> int:
        """The most actors there may be of each reward."""
        return self.most_reward_actors or self.reward_actors

    @property
    def reward_models(self) -> int:
        """The most actors there may be that hold the reward model."""
        return self.reward_limit * sum(reward.kind == "model" for reward in self.rewards)

    @property
    def actors(self) -> int:
        """The most there may be that hold a model: of rollouts, rewards (room for one at least) and the learner."""
        return self.fleet_limit + max(1, self.reward_models) + self.learner_workers
