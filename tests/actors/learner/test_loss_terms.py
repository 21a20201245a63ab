"""The terms of the loss and the log-probabilities that they are made of."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.learner.batch import sample_metrics
from actors.rollout.weights import stored
from actors.types import Sample
from cluster.recipe.base import Lora
from cluster.recipe.rlhf.regularization import Importance
from tests.actors.learner.hand_made import (
    ANSWERS,
    LORA,
    PROMPTS,
    REWARDS,
    exported,
    make,
    samples,
    total,
)


def test_every_option_has_its_term_in_the_loss(folders):
    options = {"kl_charged_in": "loss", "kl_estimator": "k2", "kl_coefficient": 0.5, "entropy_bonus": 0.1}
    learner = make(folders, reward_clip=0.6, overlong_share=0.5, max_tokens=4, **options)
    learner.step(PROMPTS, samples(learner), REWARDS)
    policy, reference = (copy.deepcopy(model).double() for model in (learner.policy, learner.reference))
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    # Clipped to ±0.6; the answers of 3, 2, 2 and 4 tokens lose 0.5, 0, 0 and 1 near the limit of 4.
    shaped = [[0.6 - 0.5, -0.6], [0.5, -0.5 - 1.0]]
    total = 0.0
    for prompt, answers, rewards in zip(PROMPTS, ANSWERS, shaped, strict=True):
        for answer, reward in zip(answers, rewards, strict=True):
            advantage = (reward - np.mean(rewards)) / (np.std(rewards) + 1e-4)
            row = torch.tensor([prompt.token_ids + answer], device=learner.worker.device)
            with torch.no_grad():
                both = [
                    model(row).logits[0, len(prompt.token_ids) - 1 : -1].log_softmax(-1)
                    for model in (policy, reference)
                ]
            for i, token in enumerate(answer):
                gap = float(both[0][i, token] - both[1][i, token])
                entropy = -float((both[0][i].exp() * both[0][i]).sum())
                total += -advantage + 0.5 * 0.5 * gap**2 - 0.1 * entropy
    assert figures["loss"] == pytest.approx(total / 11, abs=1e-5)


def test_a_single_update_computes_the_old_log_probabilities_itself(folders):
    # With the divergence in the reward, the log-probabilities are needed, and made, before the update.
    once, before = (make(folders, kl_charged_in=place, kl_coefficient=1e-9) for place in ("loss", "reward"))
    drawn = samples(once)
    for sample in itertools.chain(*drawn):
        sample.logprobs[:] = [value - 0.3 for value in sample.logprobs]
    for _ in range(2):
        figures = [learner.step(PROMPTS, drawn, REWARDS) for learner in (once, before)]
        for name in ("loss", "gradient_norm", "kl", "kl_sequence", "behavior_gap"):
            assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-5, abs=1e-7), name
    assert figures[0]["kl"] > 0
    assert figures[0]["behavior_gap"] > 0.3


def test_a_divergence_in_the_reward_is_that_of_the_whole_answer(folders):
    # With equal rewards, an advantage is the difference between the divergences of the prompt's two answers.
    learner = make(
        folders, algorithm="dr_grpo", kl_charged_in="reward", kl_coefficient=0.5, max_tokens=8, minibatches=1
    )
    start = [total(learner, p, a) for p in (0, 1) for a in (0, 1)]
    learner.step(PROMPTS, samples(learner), REWARDS)
    strayed = [
        total(learner, p, a) - before for (p, a), before in zip(itertools.product((0, 1), repeat=2), start, strict=True)
    ]
    figures = learner.step(PROMPTS, samples(learner), [[1.0, 1.0], [1.0, 1.0]])
    advantages = [-0.5 * (own - np.mean(pair)) for pair in (strayed[:2], strayed[2:]) for own in pair]
    expected = -sum(advantage * length for advantage, length in zip(advantages, (3, 2, 2, 4), strict=True)) / (4 * 8)
    assert abs(expected) > 1e-3
    assert figures["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["dapo", "rloo"])
def test_without_a_penalty_the_reference_is_not_loaded(folders, algorithm: str, tmp_path: Path):
    learner = make(folders, algorithm=algorithm, kl_coefficient=0.0)
    assert learner.reference is None
    assert "reference" not in learner.sharded
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    assert not {"kl", "kl_sequence", "kl_k3"} & figures.keys()
    # It is loaded on demand, and exported where no policy was measured to be within the limits.
    rows = [PROMPTS[0].token_ids + ANSWERS[0][0]]
    expected = make(folders, algorithm="grpo").logprobs(rows, [5], 1.0)
    assert learner.logprobs(rows, [5], 1.0, fine_tuned=True) == expected
    left = exported(learner, tmp_path / "left", within_limits=True)
    assert all(torch.equal(value, left[name]) for name, value in stored(folders[0]))
    # With a limit on the divergence it is loaded after all.
    limited = make(folders, algorithm=algorithm, kl_coefficient=0.0, max_kl=9.0)
    assert abs(limited.step(PROMPTS, samples(limited), REWARDS)["kl_sequence"]) < 1e-5


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_learner_still_computes_the_model_that_it_began_with(folders, lora: Lora | None):
    learner = make(folders, lora=lora)
    rows, starts = [PROMPTS[0].token_ids + ANSWERS[0][0]], [5]
    before = learner.logprobs(rows, starts, 1.0)[0]
    learner.step(PROMPTS, samples(learner), REWARDS)
    assert learner.logprobs(rows, starts, 1.0, fine_tuned=True)[0] == pytest.approx(before, abs=1e-6)
    assert learner.logprobs(rows, starts, 1.0)[0] != pytest.approx(before, abs=1e-4)


def test_log_probabilities_are_those_of_the_tempered_distribution(folders):
    learner = make(folders)
    row, start, temperature = [2, 10, 11, 4, 3, 20, 21, 4], 5, 0.7
    short = [2, 12, 3, 9]
    found = learner.logprobs([row, short], [start, 3], temperature)
    model = learner.policy.double()
    with torch.no_grad():
        for sequence, begin, values in ((row, start, found[0]), (short, 3, found[1])):
            logits = model(torch.tensor([sequence], device=learner.worker.device)).logits[0] / temperature
            for value, position in zip(values, range(begin, len(sequence)), strict=True):
                before = logits[position - 1]
                expected = before[sequence[position]] - before.exp().sum().log()
                assert value == pytest.approx(expected.item(), abs=1e-5)


def test_tokens_beyond_the_bounds_of_importance_weights_are_counted(folders):
    learner = make(folders, kl_coefficient=0.0, importance=Importance(method="mask", min=0.5, max=5.0))
    drawn = samples(learner)
    drawn[0][0].logprobs[0] -= 2.0
    drawn[1][0].logprobs[1] += 1.0
    assert learner.step(PROMPTS, drawn, REWARDS)["importance_limited"] == pytest.approx(2 / 11)


def test_length_is_correlated_with_reward_within_prompts_alone(folders):
    first, second = samples(make(folders))

    def length_correlation(groups: list[list[Sample]], rewards: list[list[float]]) -> float:
        return sample_metrics(groups, rewards)["length_correlation"]

    # Answers of 3 and 2, and of 2 and 4 tokens; differences between the two prompts do not count.
    assert length_correlation([first, second], [[1.0, 0.0], [10.0, 12.0]]) == pytest.approx(1)
    assert length_correlation([first, second], [[0.0, 1.0], [12.0, 10.0]]) == pytest.approx(-1)
    deviations = np.array([[0.5, -0.5, -1.0, 1.0], [0.5, -0.5, 1.0, -1.0]])
    expected = np.corrcoef(deviations)[0, 1]
    assert length_correlation([first, second], [[1.0, 0.0], [12.0, 10.0]]) == pytest.approx(expected)
    assert length_correlation([first, second], [[1.0, 1.0], [2.0, 2.0]]) == 0
