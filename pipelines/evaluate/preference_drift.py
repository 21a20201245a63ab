"""Measures during RLHF whether the policy drifts towards the answers that annotators prefer.

The reward may rise while people would like the answers less (Gao et al. 2023). Their judgment of the policy's new
answers is not known during training, but their rankings of other answers are. log(policy / fine-tuned model) of an
answer is the reward that the policy has come to follow (Rafailov et al. 2023, eq. 5): it should order the held-out
rankings' answers as the annotators did.
"""

import random
from typing import Any

from cluster.errors import UserError
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.folder import RunFolder
from pipelines.data.preferences.rankings import read_rankings
from pipelines.evaluate.reward_probes import Row
from pipelines.evaluate.reward_trust import pair_accuracy
from pipelines.evaluate.token_ratios import LogprobLearner

MAX_RANKINGS = 100


class PreferenceProbe:
    """Measures the policy that the learner holds.

    Args:
        rankings: rows of rankings.parquet.
        learner: gives log-probabilities under the policy and under the fine-tuned model.
        temperature: the sampling temperature of RLHF.
        every: steps between measurements.
    """

    def __init__(self, rankings: list[dict[str, Any]], learner: LogprobLearner, temperature: float, every: int) -> None:
        # Sorted by length, so that little of a micro-batch is padding.
        self._rankings = sorted(rankings, key=lambda row: len(row["prompt_token_ids"]) + max(map(len, row["answers"])))
        self._learner, self._temperature, self._every = learner, temperature, every
        self._fine_tuned = self._scores(fine_tuned=True)

    def measure(self) -> Row:
        """Computes the share of pairs in which the policy's log-ratio is larger for the better answer.

        Returns:
            See `reward_trust.pair_accuracy`, with log-ratios as scores. The share is 0 before the first update.
        """
        policy = self._scores(fine_tuned=False)
        log_ratios = [
            [own - reference for own, reference in zip(*row, strict=True)]
            for row in zip(policy, self._fine_tuned, strict=True)
        ]
        return pair_accuracy(self._rankings, log_ratios)

    def figures(self, step: int) -> dict[str, float]:
        """Measures before a step, for its metrics and for `rlhf.stop`; empty if no measurement is due.

        None is due before step 0, when the policy is still the fine-tuned model.
        """
        return drift_metrics(self.measure()) if step and step % self._every == 0 else {}

    def _scores(self, fine_tuned: bool) -> list[list[float]]:
        rows = [(row["prompt_token_ids"], answer) for row in self._rankings for answer in row["answers"]]
        logprobs = self._learner.logprobs(
            [prompt + answer for prompt, answer in rows],
            [len(prompt) for prompt, _ in rows],
            self._temperature,
            fine_tuned,
        )
        sums = iter(map(sum, logprobs))
        return [[next(sums) for _ in row["answers"]] for row in self._rankings]


def drift_metrics(measured: Row) -> dict[str, float]:
    """Renames the value of `PreferenceProbe.measure` to the names of the metrics."""
    return {
        "preference_accuracy": measured["value"],
        "preference_accuracy_low": measured["low"],
        "preference_accuracy_high": measured["high"],
    }


def probe_rankings(run: RunFolder, settings: Rlhf, seed: int) -> list[dict[str, Any]]:
    """Draws up to `MAX_RANKINGS` held-out rankings that prefer one answer to another.

    Returns:
        Rows of rankings.parquet; empty where RLHF uses no reward model.

    Raises:
        UserError: `rlhf.stop.min_preference_accuracy` is set, and the rankings are missing or all ties.
    """
    path = run.path("preferences") / "rankings.parquet"
    needed = settings.stop.min_preference_accuracy is not None
    if not settings.needs_reward_model or not (needed or path.exists()):
        return []
    if not path.exists():
        raise UserError(f"rlhf.stop.min_preference_accuracy is measured on {path}, which is missing: run collect again")
    rows = read_rankings(path, "held_out")
    rows = [row for row in rows if len(set(row["grades"] or row["ranks"])) > 1 and all(row["answers"])]
    if needed and not rows:
        raise UserError(
            "rlhf.stop.min_preference_accuracy: no two answers to a held-out prompt differ in rank; collect more"
        )
    return random.Random(f"preference probe {seed}").sample(rows, min(MAX_RANKINGS, len(rows)))
