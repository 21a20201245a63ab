"""The recipe's section `rlhf.fleet`: numbers of actors, and asynchronous sampling."""

from typing import Annotated

from pydantic import Field, model_validator

from cluster.recipe.base import Positive, PositiveFloat, Section


class FleetSettings(Section):
    """Numbers of rollout, reward and learner actors, and how far sampling may lag behind learning."""

    rollout_actors: Positive = Field(2, description="vLLM engines that sample answers")
    max_rollout_actors: Positive | None = Field(
        None,
        description="the most rollout actors, up to which their number grows while the learner waits; unset: fixed",
    )
    tensor_parallel: Positive = Field(
        1,
        description="GPUs of each rollout actor, on one node, among which vLLM divides the model; on CPUs, processes",
    )
    reward_actors: Positive = Field(1, description="actors of each entry of rlhf.rewards, which share a step's answers")
    max_reward_actors: Positive | None = Field(
        None,
        description="the most reward actors, up to which their number grows while rewards slow a step; unset: fixed",
    )
    learner_workers: Positive = Field(
        1, description="learner processes, which share the policy and its training (FSDP2)"
    )
    max_staleness: Annotated[int, Field(ge=0, le=8)] = Field(
        0,
        description="the most weight versions that a sample may lag behind the policy; 0: synchronous and on-policy; "
        "from 1 on, sampling and learning overlap",
    )
    swap_in_flight: bool = Field(
        False,
        description="load new weights while answers are being sampled, which continue with them; needs max_staleness "
        "of at least 1",
    )
    stall_seconds: PositiveFloat = Field(
        30,
        description="the most seconds in which a rollout actor that has answers to sample may sample no token; beyond "
        "them it is replaced, and others answer its prompts; up to four times as many where engines have just been "
        "slow, or over a prompt that is sampled again. To be raised where the engine takes long for a step",
    )
    parity_every: Positive | None = Field(
        None,
        description="steps between checks that vLLM and the learner give the same log-probabilities; unset: at the "
        "start alone",
    )

    @model_validator(mode="after")
    def _least_to_most(self) -> "FleetSettings":
        if self.rollout_limit < self.rollout_actors:
            raise ValueError("max_rollout_actors is less than rollout_actors, the number at the start")
        if self.reward_limit < self.reward_actors:
            raise ValueError("max_reward_actors is less than reward_actors, the number at the start")
        if self.swap_in_flight and not self.max_staleness:
            raise ValueError("swap_in_flight mixes weight versions within an answer: set max_staleness too")
        return self

    @property
    def rollout_limit(self) -> int:
        """The most rollout actors, unless `triptych fleet` adds more."""
        return self.max_rollout_actors or self.rollout_actors

    @property
    def reward_limit(self) -> int:
        """The most actors of each reward."""
        return self.max_reward_actors or self.reward_actors
