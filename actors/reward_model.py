"""The reward model in an actor: it stands in for the people whose rankings it learned."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.model.heads import load_ensemble
from actors.model.objectives.preference import ensemble_rewards
from actors.reward import Scores
from actors.sample import Prompt, Sample
from cluster.failures import StageError

NORMALISATION = "normalisation.json"
BATCH_ROWS = 128


@torch.no_grad()
def sequence_scores(members: Sequence[Any], sequences: Sequence[list[int]], device: str = "cpu") -> list[float]:
    """The scores of token ids, prompt and answer together: the mean of the members', not yet normalised."""
    scores: list[float] = []
    for begin in range(0, len(sequences), BATCH_ROWS):
        part = [torch.tensor(sequence) for sequence in sequences[begin : begin + BATCH_ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(device)
        lengths = torch.tensor([len(sequence) for sequence in part], device=device)
        scores += ensemble_rewards(members, ids, lengths).mean(0).tolist()
    return scores


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
