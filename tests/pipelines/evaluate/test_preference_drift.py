from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.recipe.rlhf.rewards import Reward
from cluster.run.folder import RunFolder
from pipelines.data.preferences.rankings import write_rankings
from pipelines.evaluate.preference_drift import MAX_RANKINGS, PreferenceProbe, probe_rankings
from tests.helpers import rlhf


class Shifted:
    """A learner whose policy differs from its fine-tuned model by `shift` in the log-probability of a token."""

    def __init__(self, shift: Mapping[int, float]) -> None:
        self.shift = shift
        self.calls: list[bool] = []

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool
    ) -> list[list[float]]:
        assert temperature == 1.0
        self.calls.append(fine_tuned)
        shift = {} if fine_tuned else self.shift
        return [
            [-0.1 * token + shift.get(token, 0.0) for token in sequence[start:]]
            for sequence, start in zip(sequences, starts, strict=True)
        ]


def ranking(number: int, ranks: list[int], split: str = "held_out", grades: list[int] | None = None) -> dict[str, Any]:
    answers = [[5, 6], [7], [8, 8, 8]][: len(ranks)]
    return {
        "prompt_id": f"p{number}",
        "kind": None,
        "prompt_token_ids": [1] * (1 + number % 4),
        "answers": answers,
        "texts": ["a", "b", "c"][: len(ranks)],
        "ranks": ranks,
        "grades": grades,
        "annotator": "people",
        "split": split,
        "ranking_id": number,
    }


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        # An answer's log-ratio is the sum over its tokens.
        ({5: 0.2, 6: -0.1}, 2 / 3),
        ({5: 0.2, 6: -0.1, 8: -0.01}, 1),
        ({7: 0.5}, 1 / 3),
        ({8: 1.0}, 0),
        ({}, 0),
    ],
)
def test_a_pair_counts_if_the_policy_shifted_towards_its_better_answer(shift: dict[int, float], expected: float):
    learner = Shifted(shift)
    probe = PreferenceProbe([ranking(n, [1, 2, 3]) for n in range(20)], learner, 1.0, every=5)
    found = probe.measure()
    assert (found["value"], found["n"]) == (pytest.approx(expected), 60)
    assert found["low"] <= expected <= found["high"]
    probe.measure()
    # The fine-tuned model does not change and is scored once.
    assert learner.calls == [True, False, False]


def test_figures_are_measured_every_so_many_steps():
    probe = PreferenceProbe([ranking(n, [1, 2]) for n in range(9)], Shifted({5: 1.0}), 1.0, every=5)
    assert [step for step in range(12) if probe.figures(step)] == [5, 10]
    figures = probe.figures(5)
    assert (
        figures["preference_accuracy_low"] < figures["preference_accuracy"] == 1 == figures["preference_accuracy_high"]
    )


def test_probe_rankings_are_held_out_and_not_all_ties(tmp_path: Path):
    run = RunFolder(tmp_path)
    assert probe_rankings(run, rlhf(), 1) == []
    with pytest.raises(UserError, match="which is missing"):
        probe_rankings(run, rlhf(min_preference_accuracy=0.5), 1)
    run.path("preferences").mkdir()
    path = run.path("preferences") / "rankings.parquet"
    ties = [ranking(0, [1, 2], "train"), ranking(1, [1, 1]), ranking(2, [1, 2], grades=[3, 3])]
    write_rankings(ties, path)
    assert probe_rankings(run, rlhf(), 1) == []
    with pytest.raises(UserError, match="no two answers to a held-out prompt differ"):
        probe_rankings(run, rlhf(min_preference_accuracy=0.5), 1)
    write_rankings([*ties, *(ranking(n, [1, 2]) for n in range(3, 3 + 2 * MAX_RANKINGS))], path)
    rankings = probe_rankings(run, rlhf(), 1)
    assert PreferenceProbe(rankings, Shifted({5: 1.0}), 1.0, every=5).measure()["n"] == MAX_RANKINGS
    computed = rlhf(rewards=[Reward(kind="function", function="a.b:c")])
    assert probe_rankings(run, computed, 1) == []


def test_a_recipe_without_rankings_cannot_limit_preference_accuracy():
    with pytest.raises(ValueError, match="min_preference_accuracy is measured on rankings"):
        rlhf(rewards=[Reward(kind="function", function="a.b:c")], min_preference_accuracy=0.5)
