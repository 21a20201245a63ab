"""The reward model in an actor: it stands in for the people whose rankings it learned."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from actors.model.heads import load_ensemble
from actors.model.objectives.preference import ensemble_rewards
from actors.reward import Scores
from actors.sample import Prompt, Sample
from cluster.failures import StageError

NORMALISATION = "normalisation.json"
BATCH_TOKENS = 16_384


@torch.no_grad()
def sequence_scores(members: Sequence[Any], sequences: Sequence[list[int]], device: str = "cpu") -> list[float]:
    """The scores of token ids, prompt and answer together: the mean of the members', not yet normalised, in the order
    of `sequences`. Sequences of like length share a batch, so that little of it is padding."""
    scores = [0.0] * len(sequences)
    for batch in _batches_by_length(sequences):
        part = [torch.tensor(sequences[index]) for index in batch]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(device)
        lengths = torch.tensor([len(sequence) for sequence in part], device=device)
        for index, score in zip(batch, ensemble_rewards(members, ids, lengths).mean(0).tolist(), strict=True):
            scores[index] = score
    return scores


def _batches_by_length(sequences: Sequence[list[int]]) -> Iterator[list[int]]:
    """Indices of `sequences`, longest first, at most BATCH_TOKENS a batch with its padding (or one sequence)."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while order:
        rows = max(1, BATCH_TOKENS // max(1, len(sequences[order[0]])))
        yield order[:rows]
        order = order[rows:]


class ModelReward:
    """Scores token ids: (score - mean) / deviation, so that the model it was trained from averages zero. The score of
    an ensemble is the mean of its members'."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.models = [member.to(self.device).eval() for member in load_ensemble(model)]
        norm = json.loads((model / NORMALISATION).read_text())
        self.mean, self.deviation = norm["mean"], norm["deviation"]

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Scores:
        """Rewards of the samples of each prompt.

        Raises:
            StageError: a reward is not a number.
        """
        sequences = [
            p.token_ids + sample.token_ids for p, group in zip(prompts, groups, strict=True) for sample in group
        ]
        rewards = sequence_scores(self.models, sequences, self.device)
        if not all(math.isfinite(reward) for reward in rewards):
            raise StageError("the reward model answered with a number that is not finite")
        flat = iter(rewards)
        return [[(next(flat) - self.mean) / self.deviation for _ in group] for group in groups]
