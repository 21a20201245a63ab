"""Whether RLHF takes the policy where judges point, measured on the way by rankings that nothing was trained on.

The reward may rise while people would like the answers less (Gao et al. 2023). What they would say of new answers is
not known while a policy trains, what they said of others is. Of an answer, log(policy / fine-tuned model) is the reward
that the policy has come to follow (Rafailov et al. 2023, eq. 5): it should order those answers as people did.
"""

import random
from typing import Any

import pyarrow.parquet as parquet

from cluster.errors import UserError
from cluster.recipe.rlhf import Rlhf
from cluster.run.folder import RunFolder
from pipelines.evaluate.reward_probes import Row
from pipelines.evaluate.reward_trust import accuracy
from pipelines.evaluate.token_ratios import FineTuned

RANKINGS = 100


class PreferenceProbe:
    """Measures the policy that the learner holds.

    Args:
        rankings: rows of rankings.parquet.
        temperature: at which answers are drawn.
        every: steps between measurements.
    """

    def __init__(self, rankings: list[dict[str, Any]], learner: FineTuned, temperature: float, every: int) -> None:
        # By length, so that little of a micro-batch is padding.
        self._rankings = sorted(rankings, key=lambda row: len(row["prompt_token_ids"]) + max(map(len, row["answers"])))
        self._learner, self._temperature, self._every = learner, temperature, every
        self._fine_tuned = self._scores(fine_tuned=True)

    def measure(self) -> Row:
        """Of the pairs that the judge does not call a tie, those in which the policy has come to favor the better
        answer more than the fine-tuned model did: as of `trust.accuracy`. A policy that has not moved has 0."""
        policy = self._scores(fine_tuned=False)
        moved = [
            [own - before for own, before in zip(*row, strict=True)]
            for row in zip(policy, self._fine_tuned, strict=True)
        ]
        return accuracy(self._rankings, moved)

    def figures(self, step: int) -> dict[str, float]:
        """What is measured before that step, for its metrics and the limit: nothing unless it is time to, and nothing
        before the first, when the policy has not moved."""
        return figures_of(self.measure()) if step and step % self._every == 0 else {}

    def _scores(self, fine_tuned: bool) -> list[list[float]]:
        rows = [(row["prompt_token_ids"], answer) for row in self._rankings for answer in row["answers"]]
        found = self._learner.logprobs(
            [prompt + answer for prompt, answer in rows],
            [len(prompt) for prompt, _ in rows],
            self._temperature,
            fine_tuned,
        )
        sums = iter(map(sum, found))
        return [[next(sums) for _ in row["answers"]] for row in self._rankings]


def figures_of(measured: Row) -> dict[str, float]:
    """What `PreferenceProbe.measure` gave, by the names of the metrics."""
    return {
        "preference_accuracy": measured["value"],
        "preference_accuracy_low": measured["low"],
        "preference_accuracy_high": measured["high"],
    }


def held_out_rankings(run: RunFolder, settings: Rlhf, seed: int) -> list[dict[str, Any]]:
    """Some that say which of two answers is better; none where RLHF follows no reward model.

    Raises:
        UserError: the rankings are not there, or tie throughout, and the recipe limits what is measured on them.
    """
    path = run.path("preferences") / "rankings.parquet"
    needed = settings.stop.min_preference_accuracy is not None
    if not settings.needs_reward_model or not (needed or path.exists()):
        return []
    if not path.exists():
        raise UserError(f"rlhf.stop.min_preference_accuracy is measured on {path}, which is not there any more")
    rows = parquet.read_table(path, filters=[("split", "==", "held_out")]).to_pylist()
    rows = [row for row in rows if len(set(row["grades"] or row["ranks"])) > 1 and all(row["answers"])]
    if needed and not rows:
        raise UserError("rlhf.stop.min_preference_accuracy: no two answers to a held-out prompt differ in rank")
    return random.Random(f"preference probe {seed}").sample(rows, min(RANKINGS, len(rows)))
