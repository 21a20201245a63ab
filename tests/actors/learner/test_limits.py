"""The policy that is kept for export: the last that was within the limits."""

from pathlib import Path

import torch

from actors.algorithms.guardrails import breach
from tests.actors.learner.hand_made import PROMPTS, REWARDS, exported, make, samples, weights_of


def test_the_last_policy_within_the_limits_is_what_is_exported(folders, tmp_path: Path):
    learner = make(folders, min_entropy=2.0, kl_coefficient=0.0)
    policies = []
    for step in range(3):
        if step == 2:
            # Logits that are far apart: the policy is certain of every token.
            with torch.no_grad():
                learner.policy.lm_head.weight.mul_(50)
        policies.append(weights_of(learner))
        figures = learner.step(PROMPTS, samples(learner), REWARDS)
        assert (breach(figures, learner.settings) is None) == (step < 2)
        learner.save(tmp_path / "checkpoint", {})
        learner = make(folders, min_entropy=2.0, kl_coefficient=0.0)
        learner.restore(tmp_path / "checkpoint")
    newest = exported(learner, tmp_path / "newest", within_limits=False)
    kept = exported(learner, tmp_path / "kept", within_limits=True)
    for name, value in kept.items():
        assert torch.equal(value, policies[1][f"policy.{name}"].cpu()), name
    assert any(not torch.equal(value, newest[name]) for name, value in kept.items())


def test_only_a_policy_whose_accuracy_was_measured_is_kept(folders):
    learner = make(folders, min_preference_accuracy=0.5)
    for high, kept in ((None, False), (0.7, True), (None, True), (0.4, True)):
        before = weights_of(learner)
        measured = {} if high is None else {"preference_accuracy_high": high}
        figures = learner.step(PROMPTS, samples(learner), REWARDS, measured)
        assert measured.items() <= figures.items()
        if high == 0.7:
            good = before
        assert (learner.last_within_limits is not None) == kept
    for name, value in learner.last_within_limits.items():
        assert torch.equal(value, good[f"policy.{name}"]), name


def test_without_limits_no_second_policy_is_held(folders):
    learner = make(folders)
    learner.step(PROMPTS, samples(learner), REWARDS)
    assert learner.last_within_limits is None
