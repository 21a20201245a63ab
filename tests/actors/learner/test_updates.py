"""Updates of the policy: their direction and schedule, and settings that must not change them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM

from actors.algorithms.registry import ALGORITHMS
from actors.model import lora
from actors.model.reward_head import with_new_head
from actors.rollout.weights import stored
from actors.types import RolloutId, Sample
from cluster.errors import StageError
from tests.actors.learner.hand_made import (
    LORA,
    PROMPTS,
    REWARDS,
    assert_equal,
    make,
    samples,
    total,
    weights_of,
    write_scale,
)
from tests.tiny import tiny_tokenizer


def test_the_better_answer_becomes_more_likely(folders):
    learner = make(folders)
    before = [total(learner, p, a) for p in (0, 1) for a in (0, 1)]
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    after = [total(learner, p, a) for p in (0, 1) for a in (0, 1)]
    assert after[0] - before[0] > 0 > after[1] - before[1]
    assert after[2] - before[2] > after[3] - before[3]
    assert figures["behavior_gap"] < 1e-5
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert (figures["version"], figures["tokens"]) == (1, 11)


def test_the_learning_rate_rises_at_the_start_and_falls_at_the_end_also_after_a_restart(folders, tmp_path: Path):
    settings = {"steps": 8, "warmup_share": 0.25, "decay_share": 0.5, "kl_coefficient": 0.0}
    learner, constant = make(folders, **settings), make(folders, kl_coefficient=0.0)
    before = {name: value.clone() for name, value in learner.weights().items()}
    rates = [learner.step(PROMPTS, samples(learner), REWARDS)["learning_rate"]]
    constant.step(PROMPTS, samples(constant), REWARDS)
    for name, start in before.items():
        # AdamW's first update is the rate times the sign of the gradient.
        moved = learner.weights()[name] - start
        torch.testing.assert_close(moved * 2, constant.weights()[name] - start, rtol=1e-3, atol=2e-6)
    rates += [learner.step(PROMPTS, samples(learner), REWARDS)["learning_rate"] for _ in range(4)]
    learner.save(tmp_path / "checkpoint", {"step": 5})
    again = make(folders, **settings)
    again.restore(tmp_path / "checkpoint")
    rates += [again.step(PROMPTS, samples(again), REWARDS)["learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_rewards_move_no_weight(folders, algorithm: str):
    learner = make(folders, algorithm=algorithm, kl_coefficient=0.0, overlong_share=0.0, max_tokens=64)
    if learner.critic is not None:
        learner.critic.score.weight.data.zero_()
    # Answers of one token: to a critic that knows nothing, all states are alike.
    row, drawn = PROMPTS[0].token_ids, []
    for index, token in enumerate((20, 21, 22, 23)):
        (logprobs,) = learner.logprobs([[*row, token]], [len(row)], 1.0)
        drawn.append(Sample(RolloutId(0, "a", index), [token], logprobs, [0], "stop", ""))
    before = {name: value.clone() for name, value in learner.weights().items()}
    learner.step(PROMPTS[:1], [drawn], [[0.7] * 4])
    assert all(torch.equal(value, before[name]) for name, value in learner.weights().items())


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_dropout_is_off(tmp_path: Path, algorithm: str):
    settings = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1}
    config = PhiConfig(**settings, **dropout, num_attention_heads=2, eos_token_id=4, pad_token_id=0, bos_token_id=None)
    torch.manual_seed(0)
    PhiForCausalLM(config).save_pretrained(tmp_path / "sft")
    tiny_tokenizer(300).save_pretrained(tmp_path / "sft")
    with_new_head(tmp_path / "sft").save_pretrained(tmp_path / "reward")
    write_scale(tmp_path / "reward", mean=0.0, deviation=1.0)
    learner = make((tmp_path / "sft", tmp_path / "reward", []), algorithm=algorithm, learning_rate=1e-9)
    for _ in range(2):
        figures = learner.step(PROMPTS, samples(learner), REWARDS)
        assert abs(figures["kl_sequence"]) < 1e-5
        assert figures["behavior_gap"] < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_micro_batches_change_nothing(folders, algorithm: str):
    # AdamW's first step is the sign of the gradient where that is tiny, so it is the gradient that is compared.
    settings = {"algorithm": algorithm, "minibatches": 1, "kl_coefficient": 0.1, "pretrain_mix": 0.1}
    whole, split = (make(folders, micro_batch_rows=rows, **settings) for rows in (4, 1))
    figures = [learner.step(PROMPTS, samples(learner), REWARDS) for learner in (whole, split)]
    for name in ("loss", "gradient_norm", "entropy", "kl_k3", "value_loss", "pretrain_loss"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-4, abs=1e-6), name
    assert figures[0]["gradient_norm"] > 0


@pytest.mark.parametrize("settings", [{"algorithm": "ppo"}, {"lora": LORA}])
def test_recomputed_activations_change_nothing(folders, settings: dict[str, object]):
    kept, recomputed = (make(folders, recompute_activations=own, **settings) for own in (False, True))
    assert recomputed.policy.is_gradient_checkpointing
    figures = [learner.step(PROMPTS, samples(learner), REWARDS) for learner in (kept, recomputed)]
    for name in ("loss", "gradient_norm", "entropy"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-5, abs=1e-7), name


def test_adapters_learn_and_are_compared_with_the_model_without_them(folders, tmp_path: Path):
    learner = make(folders, lora=LORA, algorithm="ppo")
    before = [total(learner, 0, a) for a in (0, 1)]
    kl = [learner.step(PROMPTS, samples(learner), REWARDS)["kl"] for _ in range(4)]
    after = [total(learner, 0, a) for a in (0, 1)]
    assert after[0] - before[0] > 0 > after[1] - before[1]
    # The divergence is from the fine-tuned model: at first none, then more and more.
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] != pytest.approx(0, abs=1e-6)
    learner.export(tmp_path / "policy", within_limits=False)
    exported = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").named_parameters())
    sent = dict(lora.merge_into(stored(folders[0]), learner.weights()))
    assert all(torch.equal(value, sent[name]) for name, value in exported.items())
    assert (tmp_path / "policy" / lora.FOLDER / lora.ADAPTER_FILE).exists()
    # No policy was measured to be within limits: the fine-tuned model is exported.
    learner.export(tmp_path / "start", within_limits=True)
    left = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "start").named_parameters())
    assert all(torch.equal(value, left[name]) for name, value in stored(folders[0]))


@pytest.mark.parametrize("settings", [{"algorithm": "ppo", "pretrain_mix": 0.1}, {"lora": LORA, "entropy_bonus": 0.1}])
def test_in_bfloat16_it_learns_nearly_the_same_and_its_weights_stay_float32(folders, settings: dict[str, object]):
    fine, coarse = (make(folders, precision=precision, **settings) for precision in ("float32", "bfloat16"))
    drawn = samples(fine)
    expected, found = (learner.step(PROMPTS, drawn, REWARDS) for learner in (fine, coarse))
    # The error of rounding log-probabilities of about -5.7 to eight bits.
    assert expected["behavior_gap"] < 1e-5 < found["behavior_gap"] < 0.05
    assert found["entropy"] == pytest.approx(expected["entropy"], abs=0.05)
    for name in {"gradient_norm", "value_loss", "pretrain_loss"} & expected.keys():
        assert found[name] == pytest.approx(expected[name], rel=0.05, abs=1e-6), name
    assert {value.dtype for value in coarse.weights().values()} == {torch.float32}
    again = [learner.step(PROMPTS, samples(learner), REWARDS)["kl"] for learner in (fine, coarse)]
    assert again[1] == pytest.approx(again[0], rel=0.3, abs=0.02)


def test_a_batch_of_fewer_samples_than_minibatches_is_learned_from(folders):
    learner = make(folders, minibatches=8)
    before = weights_of(learner)
    learner.step(PROMPTS, samples(learner), REWARDS)
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(learner).items())


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named_before_any_step(folders, reward: float):
    # With one row a minibatch, a step on the finite rows would come first.
    learner = make(folders, minibatches=4)
    before = weights_of(learner)
    with pytest.raises(StageError, match=f"sample 1 of prompt 'b' is {reward}"):
        learner.step(PROMPTS, samples(learner), [[1.0, -1.0], [0.0, reward]])
    assert_equal(weights_of(learner), before)
    assert not learner.optimizers["policy"].state


def test_answers_that_were_cut_teach_nothing_where_they_are_masked(folders):
    plain, masked = (make(folders, mask_truncated=mask, kl_coefficient=0.0) for mask in (False, True))
    drawn = samples(plain)
    cut = [[replace(sample, finish_reason="length") for sample in group] for group in drawn]
    figures = masked.step(PROMPTS, [drawn[0], [drawn[1][0], cut[1][1]]], REWARDS)
    assert figures["masked"] == 0.25
    assert plain.step(PROMPTS, [drawn[0], [drawn[1][0], cut[1][1]]], REWARDS)["masked"] == 0
    assert figures["gradient_norm"] > 0
    # From a batch of cut answers alone nothing is learned, not even by AdamW's momentum.
    before = weights_of(masked)
    figures = masked.step(PROMPTS, cut, REWARDS)
    assert (figures["masked"], figures["gradient_norm"], figures["version"]) == (1, 0, 2)
    assert_equal(weights_of(masked), before)
