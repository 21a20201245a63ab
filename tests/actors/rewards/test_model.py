"""The reward model in an actor."""

import shutil
from pathlib import Path

import pytest

from actors.model.reward_head import load_reward_model
from actors.rewards import model
from actors.rewards.model import ModelReward, sequence_scores
from actors.types import Prompt, RolloutId, Sample
from tests.tiny import write_tiny_reward_model


def test_the_reward_of_an_ensemble_is_the_mean_of_its_members(tmp_path: Path):
    for folder, seed in ((tmp_path, 3), (tmp_path / "member-2", 4), (tmp_path / "other", 4)):
        write_tiny_reward_model(folder, mean=0.5, deviation=2.0, seed=seed)
    prompt = Prompt("a", [2, 90, 4, 3])
    group = [Sample(RolloutId(0, "a", 0), ids, [], [], "stop", "") for ids in ([50, 51, 4], [60, 4])]
    (together,) = ModelReward(tmp_path, threads=1).score([prompt], [group])
    (second,) = ModelReward(tmp_path / "other", threads=1).score([prompt], [group])
    shutil.rmtree(tmp_path / "member-2")
    (first,) = ModelReward(tmp_path, threads=1).score([prompt], [group])
    assert abs(first[0] - second[0]) > 1e-3
    assert together == pytest.approx([(one + other) / 2 for one, other in zip(first, second, strict=True)], abs=1e-6)


def test_scores_do_not_depend_on_the_company_a_sequence_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Batches are cut by length, and the scores come back in the order asked."""
    write_tiny_reward_model(tmp_path, mean=0.0, deviation=1.0, seed=3)
    models = [load_reward_model(tmp_path).eval()]
    sequences = [[2, *range(50, 50 + length), 4] for length in (3, 17, 1, 9, 30, 2)]
    alone = [sequence_scores(models, [sequence])[0] for sequence in sequences]
    monkeypatch.setattr(model, "BATCH_TOKENS", {"cpu": 24})
    assert len(set(alone)) == len(alone)
    assert sequence_scores(models, sequences) == pytest.approx(alone, abs=1e-5)
    assert sequence_scores(models, []) == []


def test_answers_that_share_their_prompt_have_the_scores_that_they_have_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_tiny_reward_model(tmp_path, mean=0.3, deviation=2.0, seed=3)
    reward = ModelReward(tmp_path, threads=1)
    prompts = [Prompt(f"{first}", [2, first, *range(90, 90 + length), 4, 3]) for first, length in ((60, 20), (61, 3))]
    # The last of the first prompt's is empty, as an answer is that ends where it begins.
    answers = [[[50, 51, 4], [60], list(range(50, 70)), []], [[50, 51, 4], [52, 4]]]
    groups = [[Sample(RolloutId(0, "", 0), ids, [], [], "stop", "") for ids in own] for own in answers]
    alone = [
        [reward.score([prompt], [[sample]])[0][0] for sample in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    widths: list[tuple[int, ...]] = []
    layer = reward.models[0].model.layers[0]
    layer.register_forward_pre_hook(lambda _, given: widths.append(tuple(given[0].shape[:2])))
    for tokens in (40, 1000):
        monkeypatch.setattr(model, "BATCH_TOKENS", {"cpu": tokens})
        found = reward.score(prompts, groups)
        assert [pytest.approx(own, abs=1e-5) for own in alone] == found
    # In one batch, a row a prompt: the longer with 24 tokens and the 24 of its answers.
    assert widths[-1] == (2, 48)
