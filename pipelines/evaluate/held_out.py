"""Compares rewards, lengths and KL divergence of answers to prompts that RLHF did not train on, before and after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.orchestrator.fleet import Fleet
from actors.rewards.pool import RewardWorkerPool, WeightedRewards
from actors.types import Failure, Prompt, RewardInput, Sample, Sampling, Verdict
from cluster.errors import StageError, wait_for
from pipelines.data.balance import Loss, balance
from pipelines.evaluate.stats import Change, divergence, paired_change

# `kind` of these rows in answers.json; rows of an exam have the kind of their question.
HELD_OUT = "held out"


@dataclass(frozen=True)
class RewardedAnswers:
    """One model's answers to N prompts, a group for each, and the verdicts on them in the same order."""

    groups: list[list[Sample]]
    rewards: list[list[Verdict]]

    @property
    def failures(self) -> list[Failure]:
        """The failures of answers that got no reward. The measures leave these answers out."""
        return [verdict for own in self.rewards for verdict in own if isinstance(verdict, Failure)]


@dataclass(frozen=True)
class AnswerMetric:
    """A number computed for an answer with its reward.

    Attributes:
        name: key in report.json.
        title: name on the page.
        of: the function of an answer and its reward.
    """

    name: str
    title: str
    of: Callable[[Sample, float], float]


MEASURES = (
    AnswerMetric("reward", "Reward", lambda _, reward: reward),
    AnswerMetric("response_length", "Tokens per answer", lambda sample, _: sample.length),
    AnswerMetric("stop_rate", "Ends by itself", lambda sample, _: float(sample.finish_reason == "stop")),
    AnswerMetric("repetition", "Share of repeated 3-token runs", lambda sample, _: sample.repetition),
)


def sample_and_reward(
    fleet: Fleet,
    pools: Sequence[RewardWorkerPool],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    prompts_at_once: int,
    environment_weight: float | None = None,
) -> RewardedAnswers:
    """Samples answers with the weights that the fleet holds, and rewards them.

    Args:
        fleet: rollout actors.
        pools: the sources of rewards.
        prompts: N prompts.
        sampling: how to sample.
        prompts_at_once: prompts whose answers are rewarded in one batch: time limits of rewards are for the batch of a
            training step.
        environment_weight: the weight of the environment's own reward; None to leave it out.

    Raises:
        DeadlineError, EngineError, StageError: see `Fleet.generate` and `WeightedRewards.wait`.
    """
    samples = fleet.generate(prompts, sampling)
    groups = [samples[prompt.id] for prompt in prompts]
    parts = [slice(begin, begin + prompts_at_once) for begin in range(0, len(prompts), prompts_at_once)]
    rewards = [WeightedRewards(pools, prompts[part], groups[part], environment_weight).wait() for part in parts]
    return RewardedAnswers(groups, [row for rows in rewards for row in rows])


def paired_changes(before: RewardedAnswers, after: RewardedAnswers) -> dict[str, Change]:
    """Computes the change of every measure, by name, with the means of prompts paired.

    Prompts of which neither or only one model has answers with a reward are left out.

    Raises:
        StageError: no prompt is left.
    """
    pairs = [(one, other) for one, other in zip(_judged(before), _judged(after), strict=True) if one and other]
    if not pairs:
        failures = [*before.failures, *after.failures]
        first = sum(not one for one in _judged(before))
        losses = [
            Loss("no reward before training", first),
            Loss("none after it", len(before.groups) - first),
        ]
        remedy = f"fix rlhf.rewards, which failed last with: {failures[-1].reason}"
        raise StageError(balance("held-out prompts", 0, losses, "and 1 needed, with rewards of both models", remedy))
    return {
        measure.name: paired_change(*([_mean(measure, side) for side in sides] for sides in zip(*pairs, strict=True)))
        for measure in MEASURES
    }


def divergence_from_loaded(
    fleet: Fleet, prompts: Sequence[Prompt], answers: RewardedAnswers, deadline: float
) -> dict[str, float]:
    """Estimates the KL divergence of the model that gave the answers from the weights that the fleet holds now.

    Args:
        fleet: rollout actors.
        prompts: N prompts.
        answers: the answers to them, sampled at temperature 1; the first of each group is used.
        deadline: the longest wait, in seconds.

    Returns:
        See `stats.divergence`.
    """
    samples = [group[0] for group in answers.groups]
    rows = [prompt.token_ids + sample.token_ids for prompt, sample in zip(prompts, samples, strict=True)]
    starts = [len(prompt.token_ids) for prompt in prompts]
    scores = wait_for(fleet.handles()[0].score.remote(rows, starts), deadline, "the scores of the policy's answers")
    return divergence(
        [_generated(sample, sample.logprobs) for sample in samples],
        [_generated(sample, logprobs) for sample, logprobs in zip(samples, scores, strict=True)],
    )


def answer_rows(
    prompts: Sequence[Prompt], inputs: Mapping[str, RewardInput], answers: Mapping[str, RewardedAnswers]
) -> list[dict[str, Any]]:
    """Makes the rows of answers.json: for each prompt, every model's first answer with its reward.

    Prompts of which such an answer got no reward are left out.

    Args:
        prompts: N prompts.
        inputs: the prompts as text, by id.
        answers: the answers by the model's name.
    """
    return [
        {
            "kind": HELD_OUT,
            "question": inputs[prompt.id].text,
            "answers": {
                name: {
                    "text": model.groups[index][0].text.strip(),
                    "reward": model.rewards[index][0],
                    "stopped": model.groups[index][0].finish_reason == "stop",
                }
                for name, model in answers.items()
            },
        }
        for index, prompt in enumerate(prompts)
        if not any(isinstance(model.rewards[index][0], Failure) for model in answers.values())
    ]


def _generated(sample: Sample, values: Sequence[float]) -> list[float]:
    """Returns the values of the tokens that the policy generated; a conversation of several turns holds others too."""
    return [value for value, generated in zip(values, sample.loss_mask, strict=True) if generated]


def _judged(answers: RewardedAnswers) -> list[list[tuple[Sample, float]]]:
    """Returns the answers to each prompt that got a reward, each with its reward."""
    return [
        [(sample, reward) for sample, reward in zip(group, rewards, strict=True) if not isinstance(reward, Failure)]
        for group, rewards in zip(answers.groups, answers.rewards, strict=True)
    ]


def _mean(measure: AnswerMetric, judged: Sequence[tuple[Sample, float]]) -> float:
    return float(np.mean([measure.of(sample, reward) for sample, reward in judged]))
