"""The critic of PPO: its first values, its training, and values and gradients that are not finite."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.learner.learner import Learner
from actors.model.reward_head import load_reward_model
from actors.rewards.model import ModelReward
from cluster.errors import StageError
from cluster.recipe.rlhf.rewards import Reward
from tests.actors.learner.hand_made import PROMPTS, REWARDS, assert_equal, make, samples, weights_of, write_scale
from tests.helpers import rlhf


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_critic_starts_from_the_rewards_that_are_given(folders, tmp_path: Path, weight: float):
    # At an answer's end its value is the reward model's reward: normalized, and times its weight.
    model = load_reward_model(folders[1])
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    write_scale(tmp_path, mean=4.0, deviation=3.0)
    groups = samples(make(folders))
    scores = ModelReward(tmp_path, threads=1).score(PROMPTS, groups)
    settings = rlhf(algorithm="ppo", rewards=[Reward(kind="model", weight=weight)])
    learner = Learner(settings, folders[0], tmp_path, folders[2], seed=0, threads=1)
    # The value before a further token is that after the answer.
    padded = [
        [replace(s, token_ids=[*s.token_ids, 9], loss_mask=[], logprobs=[*s.logprobs, 0.0]) for s in group]
        for group in groups
    ]
    batch = learner.collator.rollouts(PROMPTS, padded, scores)
    with torch.no_grad():
        values = learner._values(batch)
    last = batch.completion_mask.shape[1] - 1 - batch.completion_mask.flip(1).int().argmax(1)
    found = values.gather(1, last.unsqueeze(1)).squeeze(1)
    assert torch.allclose(found, weight * batch.rewards, atol=1e-5)


def test_the_critic_learns_the_returns(folders):
    learner = make(folders, algorithm="ppo", kl_coefficient=0.0, clip_range=10.0)
    drawn = samples(learner)
    losses = [learner.step(PROMPTS, drawn, REWARDS)["value_loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_critic_that_diverges_moves_neither_model(folders):
    learner = make(folders, algorithm="ppo")
    drawn = samples(learner)
    with torch.no_grad():
        learner.critic.score.weight.fill_(1e30)
    before = weights_of(learner)
    with pytest.raises(StageError, match="value_loss is inf"):
        learner.step(PROMPTS, drawn, REWARDS)
    assert_equal(weights_of(learner), before)


def test_a_gradient_that_is_not_finite_moves_neither_model(folders):
    learner = make(folders, algorithm="ppo")
    drawn = samples(learner)
    learner.critic.score.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights_of(learner)
    with pytest.raises(StageError, match="gradient norm of the critic is"):
        learner.step(PROMPTS, drawn, REWARDS)
    assert_equal(weights_of(learner), before)
    assert all(parameter.grad is None for parameter in learner.critic.parameters())
