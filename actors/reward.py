"""The reward actor: holds the reward model and scores answers."""

import json
import math
from pathlib import Path

import torch

from actors.model.heads import load_reward_model
from actors.model.objectives.preference import sequence_rewards
from cluster.failures import StageError

NORMALISATION = "normalisation.json"
BATCH_ROWS = 128


class RewardActor:
    """Scores token ids: (score - mean) / deviation, so that the model it was trained from averages zero."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_reward_model(model).to(self.device).eval()
        norm = json.loads((model / NORMALISATION).read_text())
        self.mean, self.deviation = norm["mean"], norm["deviation"]

    @torch.no_grad()
    def score(self, sequences: list[list[int]]) -> list[float]:
        """Rewards of prompts with their answers.

        Raises:
            StageError: a reward is not a number.
        """
        rewards: list[float] = []
        for begin in range(0, len(sequences), BATCH_ROWS):
            part = [torch.tensor(sequence) for sequence in sequences[begin : begin + BATCH_ROWS]]
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=0).to(self.device)
            lengths = torch.tensor([len(sequence) for sequence in part], device=self.device)
            rewards += sequence_rewards(self.model, ids, lengths).tolist()
        if not all(math.isfinite(reward) for reward in rewards):
            raise StageError("the reward model answered with a number that is not finite")
        return [(reward - self.mean) / self.deviation for reward in rewards]
