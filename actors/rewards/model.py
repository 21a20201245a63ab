"""The reward model in an actor: it stands in for the people whose rankings it learned."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.model.perf import engine_precision
from actors.model.reward_head import load_ensemble
from actors.objectives.bradley_terry import ensemble_rewards
from actors.rewards.pool import Scores
from actors.types import Prompt, Sample, reward_scale_file
from cluster.errors import StageError

# With a model of 135M parameters, two cores read 679 tokens a second so and 376 in batches of 16,384.
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}


@torch.no_grad()
def sequence_scores(
    members: Sequence[Any],
    sequences: Sequence[list[int]],
    device: str = "cpu",
    precision: str = "float32",
    follow: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
    prompts: Sequence[tuple[int, int]] | None = None,
) -> list[float]:
    """The scores of token ids, prompt and answer together. Sequences of like length share a batch, so that little of it
    is padding.

    Args:
        members: of an ensemble; the score is their mean.
        precision: bfloat16 (autocast) or float32.
        follow: is given all batches and gives them one by one, as a progress bar does.
        prompts: of every sequence, the number of the prompt that it answers and how many tokens that has; a prompt of
            several goes through the model once a batch. Unless it is given, none share theirs.

    Returns:
        In the order of `sequences`, not normalized.
    """
    scores = [0.0] * len(sequences)
    known = prompts or [(index, 1) for index in range(len(sequences))]
    for batch in follow(list(_batches_by_length(sequences, known, BATCH_TOKENS[device]))):
        part = [torch.tensor(sequences[index]) for index in batch]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(device)
        lengths = torch.tensor([len(sequence) for sequence in part], device=device)
        groups, starts = torch.tensor([known[index] for index in batch], device=device).T
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            rewards = ensemble_rewards(members, ids, lengths, starts, groups)
        for index, score in zip(batch, rewards.mean(0).tolist(), strict=True):
            scores[index] = score
    return scores


def _batches_by_length(
    sequences: Sequence[list[int]], prompts: Sequence[tuple[int, int]], tokens: int
) -> Iterator[list[int]]:
    """Indices of `sequences`, longest first, answers to one prompt together, at most so many tokens a batch with its
    padding (or one sequence)."""
    longest: dict[int, int] = {}
    for sequence, (prompt, _) in zip(sequences, prompts, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(sequence))

    def place(index: int) -> tuple[int, int, int]:
        prompt, _ = prompts[index]
        return -longest[prompt], prompt, -len(sequences[index])

    order = sorted(range(len(sequences)), key=place)
    while order:
        rows = max(1, tokens // max(1, len(sequences[order[0]])))
        yield order[:rows]
        order = order[rows:]


class ModelReward:
    """Scores token ids: (score - mean) / deviation, so that the model it was trained from averages zero. The score of
    an ensemble is the mean of its members'."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = engine_precision(self.device)
        self.models = [member.to(self.device).eval() for member in load_ensemble(model)]
        norm = json.loads(reward_scale_file(model).read_text())
        self.mean, self.deviation = norm["mean"], norm["deviation"]

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Rewards of the samples of each prompt.

        Raises:
            StageError: a reward is not a number.
        """
        answers = [
            (number, prompt.token_ids, sample.token_ids)
            for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
            for sample in group
        ]
        sequences = [prompt + answer for _, prompt, answer in answers]
        shared = [(number, len(prompt)) for number, prompt, _ in answers]
        rewards = sequence_scores(self.models, sequences, self.device, self.precision, prompts=shared)
        if not all(math.isfinite(reward) for reward in rewards):
            raise StageError("the reward model answered with a number that is not finite")
        flat = iter(rewards)
        return [[(next(flat) - self.mean) / self.deviation for _ in group] for group in groups]
