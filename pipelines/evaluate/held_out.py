"""What reinforcement learning did to the answers to prompts that it did not train on, by the rewards it trained for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.orchestrator.fleet import Fleet
from actors.rewards.pool import RewardWorkerPool, WeightedRewards
from actors.types import Prompt, RewardInput, Sample, Sampling
from cluster.errors import wait_for
from pipelines.evaluate.stats import Change, divergence, paired_change


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers of one model, a group for every prompt, and their rewards."""

    groups: list[list[Sample]]
    rewards: list[list[float]]


@dataclass(frozen=True)
class Measure:
    """A number of an answer with its reward; `name` is its key in report.json."""

    name: str
    title: str
    of: Callable[[Sample, float], float]


MEASURES = (
    Measure("reward", "Reward", lambda _, reward: reward),
    Measure("response_length", "Tokens an answer", lambda sample, _: sample.length),
    Measure("stop_rate", "Ends by itself", lambda sample, _: float(sample.finish_reason == "stop")),
    Measure("repetition", "Repeated runs of three tokens", lambda sample, _: sample.repetition),
)


def draw(
    fleet: Fleet, scorers: Sequence[RewardWorkerPool], prompts: Sequence[Prompt], sampling: Sampling, together: int
) -> HeldOutAnswers:
    """Answers by the weights that the fleet holds, and their rewards, of so many prompts at a time: what rewards take
    for a step of training is what they have been given time for. Raises as `Fleet.generate` and `WeightedRewards`."""
    drawn = fleet.generate(prompts, sampling)
    groups = [drawn[prompt.id] for prompt in prompts]
    parts = [slice(begin, begin + together) for begin in range(0, len(prompts), together)]
    rewards = [WeightedRewards(scorers, prompts[part], groups[part]).wait() for part in parts]
    return HeldOutAnswers(groups, [row for rows in rewards for row in rows])


def changes(before: HeldOutAnswers, after: HeldOutAnswers) -> dict[str, Change]:
    """Every measure of both, the means of each prompt paired."""
    return {measure.name: paired_change(_means(measure, before), _means(measure, after)) for measure in MEASURES}


def divergence_from_held(
    fleet: Fleet, prompts: Sequence[Prompt], drawn: HeldOutAnswers, deadline: float
) -> dict[str, float]:
    """`figures.divergence` of the first answer to each prompt, drawn at temperature 1, from the weights that the fleet
    holds now."""
    samples = [group[0] for group in drawn.groups]
    rows = [prompt.token_ids + sample.token_ids for prompt, sample in zip(prompts, samples, strict=True)]
    starts = [len(prompt.token_ids) for prompt in prompts]
    held = wait_for(fleet.handles()[0].score.remote(rows, starts), deadline, "the scores of the policy's answers")
    return divergence(
        [_own(sample, sample.logprobs) for sample in samples],
        [_own(sample, scores) for sample, scores in zip(samples, held, strict=True)],
    )


def answer_rows(
    prompts: Sequence[Prompt], inputs: Mapping[str, RewardInput], drawn: Mapping[str, HeldOutAnswers]
) -> list[dict[str, Any]]:
    """One row a prompt for answers.json: the first answer of each model with its reward."""
    return [
        {
            "kind": "kept back",
            "question": inputs[prompt.id].text,
            "answers": {
                name: {
                    "text": found.groups[index][0].text.strip(),
                    "reward": found.rewards[index][0],
                    "stopped": found.groups[index][0].finish_reason == "stop",
                }
                for name, found in drawn.items()
            },
        }
        for index, prompt in enumerate(prompts)
    ]


def _own(sample: Sample, values: Sequence[float]) -> list[float]:
    """Those of the tokens that the policy drew: in a conversation of several turns there are others."""
    return [value for value, own in zip(values, sample.loss_mask, strict=True) if own]


def _means(measure: Measure, drawn: HeldOutAnswers) -> list[float]:
    return [
        float(np.mean([measure.of(sample, reward) for sample, reward in zip(group, rewards, strict=True)]))
        for group, rewards in zip(drawn.groups, drawn.rewards, strict=True)
    ]
