"""Rewards of answers, each from an actor of its own, and their weighted sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.sample import Prompt, Question, Sample
from cluster.failures import wait_for
from cluster.plan import Share

Scores = list[list[float]]


def restarted(kind: type, share: Share, restarts: int) -> Any:
    """The class of a reward as that of a Ray actor, which is started again when it is killed, and asked again.

    Rewards have no state. One that dies more often than `restarts` in all has a fault of its own.
    """
    return ray.remote(kind).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}},
        max_restarts=restarts,
        max_task_retries=restarts,
    )


@dataclass(frozen=True)
class Scorer:
    """One reward among several.

    Attributes:
        name: for messages.
        actor: a handle of a `ModelReward`, `FunctionReward` or `HttpReward`.
        weight: in the sum.
        seconds: most time for the answers of one step.
        questions: by the prompts' ids, for actors that are to see them. They go with what is asked: as an argument of
            an actor that may be started again, many would have to stay in Ray's object store.
    """

    name: str
    actor: Any
    weight: float
    seconds: float
    questions: Mapping[str, Question] | None = None

    def ask(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Any:
        """The reference of the rewards to come."""
        if self.questions is None:
            return self.actor.score.remote(prompts, groups)
        return self.actor.score.remote(prompts, groups, [self.questions[prompt.id] for prompt in prompts])


def weighted_rewards(
    scorers: Sequence[Scorer], prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]
) -> Scores:
    """The weighted sum of what all scorers give, asked at once.

    Raises:
        DeadlineError: one was not done in its time.
        EngineError: one was killed more often than it is started again.
        StageError: one failed.
    """
    asked = [(scorer, scorer.ask(prompts, groups)) for scorer in scorers]
    total = [[0.0] * len(group) for group in groups]
    for scorer, answer in asked:
        scores = wait_for(answer, scorer.seconds, f"the rewards of {scorer.name}")
        total = [
            [old + scorer.weight * new for old, new in zip(*rows, strict=True)]
            for rows in zip(total, scores, strict=True)
        ]
    return total
