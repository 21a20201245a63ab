"""The training data of the reward stage: bootstrap samples for an ensemble, and shares for a curve."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from actors.rewards.scorer import ScoreFunction
from actors.types import reward_scale_file
from cluster.errors import UserError
from cluster.recipe.training import Dpo, RewardModel
from pipelines.data.preferences.rankings import require_judgements, write_rankings
from pipelines.reward_model import _point, _resample, _write_normalization


def rows(prompts: int) -> list[dict[str, Any]]:
    """Returns rankings of two answers to each prompt by two people; the better answer has the higher token."""
    return [
        {
            "prompt_id": f"p{number:03d}",
            "prompt_token_ids": [1],
            "answers": [[7], [3]],
            "ranks": [1, 2],
            "grades": None,
            "kind": None,
            "annotator": person,
        }
        for number in range(prompts)
        for person in ("ann", "ben")
    ]


def test_a_bootstrap_sample_has_as_many_prompts_with_all_their_rankings() -> None:
    given = rows(200)
    drawn = _resample(given, seed=1, number=2)
    assert drawn == _resample(given, seed=1, number=2) != _resample(given, seed=1, number=3)
    counts = Counter(row["prompt_id"] for row in drawn)
    assert sum(counts.values()) == len(given)
    assert all(count % 2 == 0 for count in counts.values())
    # Of n prompts 1 - 1/e are drawn: 126 of 200, with a deviation of 4.4.
    assert 110 < len(counts) < 143


def test_a_point_of_the_curve_is_measured_once(tmp_path: Path) -> None:
    parts = {"train": rows(40), "held_out": rows(15)}
    seen: dict[str, set[str]] = {}

    def train(rankings: list[dict[str, Any]], out: Path) -> Path:
        out.mkdir(parents=True)
        seen[out.name] = {row["prompt_id"] for row in rankings}
        assert len(rankings) == 2 * len(seen[out.name])
        return out

    @contextmanager
    def scorer() -> Iterator[ScoreFunction]:
        # The reward is the id of the last token.
        yield lambda _, sequences: [float(sequence[-1]) for sequence in sequences]

    points = [_point(share, 1, parts, train, scorer, tmp_path / "curve") for share in (0.25, 0.5, 0.25)]
    assert [(point["prompts"], point["rankings"]) for point in points] == [(10, 20), (20, 40), (10, 20)]
    assert points[0]["pair_accuracy"]["value"] == 1.0
    assert points[0]["pair_accuracy"]["n"] == 30
    assert seen["0.25"] < seen["0.5"]
    assert sorted(path.name for path in (tmp_path / "curve").iterdir()) == ["0.25.json", "0.5.json"]


def test_the_scale_counts_an_answer_as_often_as_it_was_sampled(tmp_path: Path) -> None:
    _write_normalization([[0.0, 4.0], [1.0]], [{"samples": [3, 1]}, {"samples": [2]}], tmp_path)
    scale = json.loads(reward_scale_file(tmp_path).read_text())
    values = [0.0, 0.0, 0.0, 4.0, 1.0, 1.0]
    assert (scale["mean"], scale["deviation"]) == pytest.approx((fmean(values), pstdev(values)))


def test_rankings_that_teach_nothing_are_counted_by_reason(tmp_path: Path) -> None:
    made = [row | {"texts": ["a", "b"], "split": "train", "ranking_id": 0} for row in rows(4)]
    made += [row | {"split": "held_out", "ranks": [1, 1]} for row in made[:3]]
    made += [row | {"split": "held_out", "source": "votes"} for row in made[:2]]
    made.append(made[0] | {"split": "held_out", "texts": ["a"], "answers": [[7]], "ranks": [1], "good": True})
    write_rankings(made, tmp_path / "rankings.parquet")
    weights: dict[str, Any] = {"source_weights": {"votes": 0.0}}
    settings = RewardModel.model_validate(weights)
    require_judgements(tmp_path / "rankings.parquet", "train", settings)
    whole = (
        r"^6 judgements of the held_out prompts read, 0 left, and 1 needed, that say which answer is better "
        r"\(all answers tied 3, weight 0 2, one answer without a pair 1; 8 of the other split\); "
        r"most are lost to 'all answers tied': raise collect\.temperature, or collect more rankings$"
    )
    with pytest.raises(UserError, match=whole):
        require_judgements(tmp_path / "rankings.parquet", "held_out", settings)
    # KTO learns from single answers, and compares two prompts.
    kto = Dpo.model_validate({"loss": "kto", **weights})
    with pytest.raises(UserError, match=r"^6 .*1 left, and 2 needed, .*of two prompts for loss kto \(.*weight 0 2"):
        require_judgements(tmp_path / "rankings.parquet", "held_out", kto)
