"""The signs against closed forms and float64 references, and planted exploits of a reward."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from actors.overoptimization.signs import (
    StartSamples,
    explained_variance,
    jensen_shannon,
    sample_signs,
    within_prompt_correlation,
)
from actors.overoptimization.tracker import WINDOW, OveroptimizationTracker
from actors.types import RolloutId, Sample

CHANCE = np.random.default_rng(7)


def sample(tokens: list[int], mask: list[bool] | None = None) -> Sample:
    zeros = [0.0] * len(tokens)
    return Sample(RolloutId(0, "p", 0), tokens, zeros, [0] * len(tokens), "stop", "", loss_mask=mask or [])


def drawn(prompts: int, count: int, length: int = 12, vocabulary: int = 40) -> list[list[Sample]]:
    return [[sample(CHANCE.integers(1, vocabulary, length).tolist()) for _ in range(count)] for _ in range(prompts)]


def test_the_divergence_is_that_of_scipy():
    p, q = CHANCE.dirichlet(np.ones(9)), CHANCE.dirichlet(np.ones(9))
    found = jensen_shannon(dict(zip("abcdefghi", p, strict=True)), dict(zip("abcdefghi", q, strict=True)))
    assert found == pytest.approx(jensenshannon(p, q, 2) ** 2, abs=1e-12)
    assert jensen_shannon({"a": 1.0}, {"b": 1.0}) == 1
    assert jensen_shannon({"a": 0.5, "b": 0.5}, {"b": 0.5, "a": 0.5}) == 0


def test_the_explained_variance_is_that_of_a_regression_with_a_constant_for_each_prompt():
    features, rewards = CHANCE.normal(size=(3, 6, 8)), CHANCE.normal(size=(6, 8))
    rewards += 2 * features[0]
    design = np.c_[features.reshape(3, -1).T, np.kron(np.eye(6), np.ones((8, 1)))]
    left = rewards.ravel() - design @ np.linalg.lstsq(design, rewards.ravel(), rcond=None)[0]
    whole = ((rewards - rewards.mean(1, keepdims=True)) ** 2).sum()
    expected = 1 - (left @ left / (48 - 6 - 3)) / (whole / (48 - 6))
    assert explained_variance(features.tolist(), rewards.tolist()) == pytest.approx(expected, abs=1e-12)
    assert explained_variance(features.tolist(), np.ones((6, 8)).tolist()) == 0


def test_noise_explains_nothing_on_average():
    found = [
        explained_variance(CHANCE.normal(size=(4, 16, 8)).tolist(), CHANCE.normal(size=(16, 8)).tolist())
        for _ in range(50)
    ]
    assert np.mean(found) < 0.03


def test_a_correlation_is_within_prompts():
    values, rewards = CHANCE.normal(size=(5, 4)), CHANCE.normal(size=(5, 4))
    shifted = rewards + 100 * CHANCE.normal(size=(5, 1))
    centered = [table - table.mean(1, keepdims=True) for table in (values, rewards)]
    expected = np.corrcoef(centered[0].ravel(), centered[1].ravel())[0, 1]
    assert within_prompt_correlation(values.tolist(), shifted.tolist()) == pytest.approx(expected, abs=1e-9)


def test_a_planted_opening_and_a_planted_token_are_found():
    start = StartSamples.of(drawn(16, 8))
    groups = drawn(16, 8)
    planted = [
        [sample([41, 42, 43, *one.token_ids[3:], 44] if n < 4 else one.token_ids) for n, one in enumerate(group)]
        for group in groups
    ]
    rewards = [[float(n < 4) for n in range(8)] for _ in groups]
    found, honest = sample_signs(planted, rewards, start), sample_signs(groups, rewards, start)
    assert found["opening_rise"] == found["token_rise"] == 0.5
    assert found["opening_correlation"] == pytest.approx(1)
    assert found["token_correlation"] == pytest.approx(1)
    assert found["cheap_explained"] == pytest.approx(1)
    assert found["token_divergence"] > 3 * honest["token_divergence"]
    assert honest["cheap_explained"] < 0.2


def test_tokens_that_the_policy_did_not_draw_do_not_count():
    groups = drawn(4, 2)
    start = StartSamples.of(groups)
    others = [99] * 5
    longer = [
        [sample([*one.token_ids, *others], [True] * len(one.token_ids) + [False] * 5) for one in group]
        for group in groups
    ]
    rewards = [[0.0, 1.0]] * 4
    assert sample_signs(longer, rewards, start) == pytest.approx(sample_signs(groups, rewards, start))


def test_the_tracker_averages_steps_and_goes_on_from_a_checkpoint():
    rewards = [[0.0, 1.0]] * 4
    tracker, steps = OveroptimizationTracker(), [drawn(4, 2) for _ in range(WINDOW + 2)]
    found = [tracker.measure(groups, rewards, first=n == 0) for n, groups in enumerate(steps[:-1])]
    assert found[0]["overoptimization"] == 0
    assert found[-1]["overoptimization"] == pytest.approx(np.mean([row["token_divergence"] for row in found[-WINDOW:]]))
    again = OveroptimizationTracker()
    again.load_state_dict(tracker.state_dict())
    assert again.measure(steps[-1], rewards, first=False) == tracker.measure(steps[-1], rewards, first=False)
    unknown = OveroptimizationTracker()
    unknown.load_state_dict(None)
    assert unknown.measure(steps[-1], rewards, first=False) == {}
