"""Rewards from a reward model, which was trained to predict the rankings of people."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.model.perf import engine_precision
from actors.model.reward_head import load_ensemble
from actors.objectives.bradley_terry import ensemble_rewards
from actors.types import Failure, Prompt, Sample, Scores, Verdict, reward_scale_file

# Tokens of a batch, padding included. With a model of 135M parameters, two cores read 679 tokens a second so and 376 in
# batches of 16,384.
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}


@torch.no_grad()
def sequence_scores(
    members: Sequence[Any],
    sequences: Sequence[list[int]],
    device: str = "cpu",
    precision: str = "float32",
    progress: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
    prompts: Sequence[tuple[int, int]] | None = None,
) -> list[float]:
    """Scores sequences of token ids. Those of similar length share a batch, so that little of it is padding.

    Args:
        members: the models of an ensemble; a score is the mean of theirs.
        sequences: prompt and answer of each.
        device: "cpu" or "cuda".
        precision: "bfloat16" (autocast) or "float32".
        progress: takes all batches and yields them one by one, as a progress bar does.
        prompts: for every sequence, a number of its prompt and that prompt's tokens. Answers to one prompt lie in one
            batch where they fit, and the prompt goes through the model once a batch. By default no prompt is shared.

    Returns:
        The scores in the order of `sequences`, not normalized.
    """
    scores = [0.0] * len(sequences)
    shared = prompts or [(index, 1) for index in range(len(sequences))]
    for batch in progress(list(_batches_by_length(sequences, shared, BATCH_TOKENS[device]))):
        part = [torch.tensor(sequences[index]) for index in batch]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(device)
        lengths = torch.tensor([len(sequence) for sequence in part], device=device)
        groups, starts = torch.tensor([shared[index] for index in batch], device=device).T
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            rewards = ensemble_rewards(members, ids, lengths, starts, groups)
        for index, score in zip(batch, rewards.mean(0).tolist(), strict=True):
            scores[index] = score
    return scores


def _batches_by_length(
    sequences: Sequence[list[int]], prompts: Sequence[tuple[int, int]], tokens: int
) -> Iterator[list[int]]:
    """Yields batches of indices of `sequences`, the longest first and answers to one prompt together: each of at most a
    number of tokens with its padding, or of one sequence."""
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
    """Scores samples by their token ids: (score - mean) / deviation, by which the fine-tuned model's answers average 0.

    Args:
        model: the reward stage's folder; of an ensemble, a score is the mean of the members'.
        threads: of PyTorch, on CPUs.
    """

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = engine_precision(self.device)
        self.models = [member.to(self.device).eval() for member in load_ensemble(model)]
        norm = json.loads(reward_scale_file(model).read_text())
        self.mean, self.deviation = norm["mean"], norm["deviation"]

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Returns the verdicts of the samples of each prompt; one that is not a finite number is a `Failure`.

        Args:
            prompts: P prompts.
            groups: the samples of each.
        """
        answers = [
            (number, prompt.token_ids, sample.token_ids)
            for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
            for sample in group
        ]
        sequences = [prompt + answer for _, prompt, answer in answers]
        shared = [(number, len(prompt)) for number, prompt, _ in answers]
        rewards = sequence_scores(self.models, sequences, self.device, self.precision, prompts=shared)
        flat = iter(rewards)
        return [
            [self._verdict(prompt, next(flat)) for _ in group] for prompt, group in zip(prompts, groups, strict=True)
        ]

    def _verdict(self, prompt: Prompt, score: float) -> Verdict:
        if math.isfinite(score):
            return (score - self.mean) / self.deviation
        return Failure(f"the reward model gave {score}, for prompt {prompt.name!r}")
