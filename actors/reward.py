"""Rewards of answers: reward models and Python functions, each in an actor of its own, and their weighted sum."""

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from actors.model.heads import load_ensemble
from actors.model.objectives.preference import ensemble_rewards
from actors.sample import Prompt, Sample
from cluster.failures import StageError, UserError, wait_for
from cluster.plan import Share

NORMALISATION = "normalisation.json"
BATCH_ROWS = 128

Scores = list[list[float]]


@dataclass(frozen=True)
class Question:
    """What a reward function sees of a prompt.

    Attributes:
        messages: the conversation up to the answer.
        metadata: what else is known of the prompt, such as the right answer.
    """

    messages: list[dict[str, str]]
    metadata: Mapping[str, str]


RewardFunction = Callable[[Question, str], float]


class ModelReward:
    """Scores token ids: (score - mean) / deviation, so that the model it was trained from averages zero. The score of
    an ensemble is the mean of its members'."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.models = [member.to(self.device).eval() for member in load_ensemble(model)]
        norm = json.loads((model / NORMALISATION).read_text())
        self.mean, self.deviation = norm["mean"], norm["deviation"]

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Rewards of the samples of each prompt.

        Raises:
            StageError: a reward is not a number.
        """
        sequences = [
            p.token_ids + sample.token_ids for p, group in zip(prompts, groups, strict=True) for sample in group
        ]
        rewards: list[float] = []
        for begin in range(0, len(sequences), BATCH_ROWS):
            part = [torch.tensor(sequence) for sequence in sequences[begin : begin + BATCH_ROWS]]
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(self.device)
            lengths = torch.tensor([len(sequence) for sequence in part], device=self.device)
            rewards += ensemble_rewards(self.models, ids, lengths).mean(0).tolist()
        if not all(math.isfinite(reward) for reward in rewards):
            raise StageError("the reward model answered with a number that is not finite")
        flat = iter(rewards)
        return [[(next(flat) - self.mean) / self.deviation for _ in group] for group in groups]


class FunctionReward:
    """Calls a function for every answer: a reward that can be verified.

    Args:
        name: module:function.
        questions: what the function sees of each prompt, by the prompt's id.
    """

    def __init__(self, name: str, questions: Mapping[str, Question]) -> None:
        self.name, self.function, self.questions = name, load_function(name), questions

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Rewards of the samples of each prompt.

        Raises:
            StageError: the function raised, or gave something else than a finite number; function and prompt are named.
        """
        return [
            [self._one(prompt.id, sample.text) for sample in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _one(self, prompt_id: str, answer: str) -> float:
        where = f"for prompt {prompt_id!r} and answer {answer!r}"
        try:
            reward = self.function(self.questions[prompt_id], answer)
        except Exception as error:
            raise StageError(f"reward function {self.name} raised {type(error).__name__} {where}: {error}") from error
        if not isinstance(reward, int | float) or not math.isfinite(reward):
            raise StageError(f"reward function {self.name} gave {reward!r} {where}: it must be a finite number")
        return float(reward)


def load_function(name: str) -> RewardFunction:
    """The function that a recipe names as module:function.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward function {name}: {error}; name it module:function, on Python's path") from error
    if not callable(found):
        raise UserError(f"reward function {name} is a {type(found).__name__}, not a function")
    return found


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
        actor: a handle of a `ModelReward` or `FunctionReward`.
        weight: in the sum.
        seconds: most time for the answers of one step.
    """

    name: str
    actor: Any
    weight: float
    seconds: float


def weighted_rewards(
    scorers: Sequence[Scorer], prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]
) -> Scores:
    """The weighted sum of what all scorers give, asked at once.

    Raises:
        DeadlineError: one was not done in its time.
        EngineError: one was killed more often than it is started again.
        StageError: one failed.
    """
    asked = [(scorer, scorer.actor.score.remote(prompts, groups)) for scorer in scorers]
    total = [[0.0] * len(group) for group in groups]
    for scorer, answer in asked:
        scores = wait_for(answer, scorer.seconds, f"the rewards of {scorer.name}")
        total = [
            [old + scorer.weight * new for old, new in zip(*rows, strict=True)]
            for rows in zip(total, scores, strict=True)
        ]
    return total
