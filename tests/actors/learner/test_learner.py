"""The learner, on a tiny model and hand-made samples."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM

from actors.algorithms.guardrails import breach
from actors.algorithms.registry import ALGORITHMS
from actors.learner.batch import sample_metrics
from actors.learner.learner import Learner
from actors.model import lora
from actors.model.causal_lm import build
from actors.model.reward_head import load_reward_model, with_new_head
from actors.rewards.model import ModelReward
from actors.rollout.weights import stored
from actors.trainer.data import Shard
from actors.trainer.job import checkpoints_in
from actors.types import Prompt, RolloutId, Sample
from cluster.errors import StageError, UserError
from cluster.recipe.base import Lora
from cluster.recipe.model import Model
from cluster.recipe.rlhf.regularization import Importance
from cluster.recipe.rlhf.rewards import Reward
from tests.helpers import rlhf
from tests.tiny import tiny_tokenizer

PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3])]
ANSWERS = [[[20, 21, 4], [22, 4]], [[23, 4], [24, 25, 26, 4]]]
REWARDS = [[1.0, -1.0], [0.5, -0.5]]
LORA = Lora(rank=4, alpha=8)


Folders = tuple[Path, Path, list[Shard]]


def model_folders(root: Path) -> Folders:
    """A fine-tuned model, a reward model of it, and two rows of text."""
    model = build(Model(vocabulary=300, hidden=64, layers=2, heads=2, context=64), 0, end_of_turn=4, padding=0)
    model.save_pretrained(root / "sft")
    tiny_tokenizer(300).save_pretrained(root / "sft")
    with_new_head(root / "sft").save_pretrained(root / "reward")
    write_scale(root / "reward", mean=0.0, deviation=1.0)
    rows = {"input_ids": [[30, 31, 32, 0], [33, 34, 0, 0]], "document_ids": [[0, 0, 0, 0], [0, 0, 0, -1]]}
    table = pa.table({name: pa.array(value, pa.list_(pa.int32())) for name, value in rows.items()})
    parquet.write_table(table, root / "text.parquet")
    return root / "sft", root / "reward", [Shard(str(root / "text.parquet"), 2)]


def write_scale(model: Path, mean: float, deviation: float) -> None:
    (model / "normalization.json").write_text(json.dumps({"mean": mean, "deviation": deviation}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return model_folders(tmp_path_factory.mktemp("learner"))


def make(folders: Folders, **settings: object) -> Learner:
    return Learner(rlhf(**{"learning_rate": 1e-3, **settings}), *folders, seed=0, threads=1)


def samples(learner: Learner) -> list[list[Sample]]:
    groups = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        rows = [prompt.token_ids + answer for answer in answers]
        logprobs = learner.logprobs(rows, [len(prompt.token_ids)] * len(rows), 1.0)
        versions = [learner.version] * 9
        groups.append(
            [
                Sample(RolloutId(0, prompt.id, index), answer, values, versions[: len(answer)], "stop", "")
                for index, (answer, values) in enumerate(zip(answers, logprobs, strict=True))
            ]
        )
    return groups


def total(learner: Learner, prompt: int, answer: int) -> float:
    row = PROMPTS[prompt].token_ids + ANSWERS[prompt][answer]
    return sum(learner.logprobs([row], [len(PROMPTS[prompt].token_ids)], 1.0)[0])


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


@pytest.mark.parametrize("settings", [{"algorithm": "grpo"}, {"algorithm": "ppo"}, {"lora": LORA}])
def test_resuming_equals_going_on(folders, settings: dict[str, object], tmp_path: Path):
    first = make(folders, **settings)
    first.step(PROMPTS, samples(first), REWARDS)
    first.save(tmp_path / "checkpoint", {"step": 1})
    second = make(folders, **settings)
    state = second.restore(tmp_path / "checkpoint")
    assert state is not None
    assert (state["step"], second.version) == (1, 1)
    for learner in (first, second):
        learner.step(PROMPTS, samples(learner), REWARDS)
    for name, value in first.weights().items():
        assert torch.equal(value, second.weights()[name]), name


def test_adapters_learn_from_the_model_that_they_are_beside(folders, tmp_path: Path):
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
    # No policy was measured to be within limits: the fine-tuned model is what is left.
    learner.export(tmp_path / "start", within_limits=True)
    left = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "start").named_parameters())
    assert all(torch.equal(value, left[name]) for name, value in stored(folders[0]))


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


@pytest.mark.parametrize("settings", [{"algorithm": "ppo", "pretrain_mix": 0.1}, {"lora": LORA, "entropy_bonus": 0.1}])
def test_in_bfloat16_it_learns_nearly_the_same_and_its_weights_stay_float32(folders, settings: dict[str, object]):
    fine, coarse = (make(folders, precision=precision, **settings) for precision in ("float32", "bfloat16"))
    drawn = samples(fine)
    expected, found = (learner.step(PROMPTS, drawn, REWARDS) for learner in (fine, coarse))
    # What rounding to eight bits makes of log-probabilities of about -5.7.
    assert expected["behavior_gap"] < 1e-5 < found["behavior_gap"] < 0.05
    assert found["entropy"] == pytest.approx(expected["entropy"], abs=0.05)
    for name in {"gradient_norm", "value_loss", "pretrain_loss"} & expected.keys():
        assert found[name] == pytest.approx(expected[name], rel=0.05, abs=1e-6), name
    assert {value.dtype for value in coarse.weights().values()} == {torch.float32}
    again = [learner.step(PROMPTS, samples(learner), REWARDS)["kl"] for learner in (fine, coarse)]
    assert again[1] == pytest.approx(again[0], rel=0.3, abs=0.02)


def test_the_only_update_needs_no_pass_of_its_own_for_the_ratio(folders):
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


def test_divergence_in_the_reward_is_the_whole_answers(folders):
    # With equal rewards, what is left of an advantage is how much less an answer strayed than the prompt's other one.
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


def test_the_divergence_coefficient_adapts_and_is_kept(folders, tmp_path: Path):
    learner = make(folders, kl_coefficient=0.5, kl_target=3.0)
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    assert figures["kl_coefficient"] == 0.5
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders, kl_coefficient=0.5, kl_target=3.0)
    again.restore(tmp_path / "checkpoint")
    # No divergence yet: the error is at its bound of -0.2.
    assert again.step(PROMPTS, samples(again), REWARDS)["kl_coefficient"] == pytest.approx(0.5 * 0.98)


@pytest.mark.parametrize("algorithm", ["dapo", "rloo"])
def test_without_a_penalty_the_reference_is_not_held(folders, algorithm: str, tmp_path: Path):
    learner = make(folders, algorithm=algorithm, kl_coefficient=0.0)
    assert learner.reference is None
    assert "reference" not in learner.sharded
    figures = learner.step(PROMPTS, samples(learner), REWARDS)
    assert not {"kl", "kl_sequence", "kl_k3"} & figures.keys()
    # It is there for those who ask, and the policy that is kept beyond a limit is it.
    rows = [PROMPTS[0].token_ids + ANSWERS[0][0]]
    expected = make(folders, algorithm="grpo").logprobs(rows, [5], 1.0)
    assert learner.logprobs(rows, [5], 1.0, fine_tuned=True) == expected
    left = exported(learner, tmp_path / "left", within_limits=True)
    assert all(torch.equal(value, left[name]) for name, value in stored(folders[0]))
    # A limit on the divergence needs it.
    limited = make(folders, algorithm=algorithm, kl_coefficient=0.0, max_kl=9.0)
    assert abs(limited.step(PROMPTS, samples(limited), REWARDS)["kl_sequence"]) < 1e-5


def test_answers_that_were_cut_teach_nothing_where_they_are_masked(folders):
    plain, masked = (make(folders, mask_truncated=mask, kl_coefficient=0.0) for mask in (False, True))
    drawn = samples(plain)
    cut = [[replace(sample, finish_reason="length") for sample in group] for group in drawn]
    figures = masked.step(PROMPTS, [drawn[0], [drawn[1][0], cut[1][1]]], REWARDS)
    assert figures["masked"] == 0.25
    assert plain.step(PROMPTS, [drawn[0], [drawn[1][0], cut[1][1]]], REWARDS)["masked"] == 0
    assert figures["gradient_norm"] > 0
    # Of nothing but cut answers nothing is learned, not even by AdamW's momentum.
    before = weights_of(masked)
    figures = masked.step(PROMPTS, cut, REWARDS)
    assert (figures["masked"], figures["gradient_norm"], figures["version"]) == (1, 0, 2)
    assert_equal(weights_of(masked), before)


def test_tokens_beyond_the_bounds_of_importance_weights_are_counted(folders):
    learner = make(folders, kl_coefficient=0.0, importance=Importance(method="mask", min=0.5, max=5.0))
    drawn = samples(learner)
    drawn[0][0].logprobs[0] -= 2.0
    drawn[1][0].logprobs[1] += 1.0
    assert learner.step(PROMPTS, drawn, REWARDS)["importance_limited"] == pytest.approx(2 / 11)


def test_nothing_to_restore(folders, tmp_path: Path):
    assert make(folders).restore(tmp_path / "none") is None


def test_a_kill_while_a_checkpoint_is_written_loses_nothing(folders, tmp_path: Path):
    learner = make(folders)
    for step in (3, 4):
        learner.step(PROMPTS, samples(learner), REWARDS)
        learner.save(tmp_path, {"step": step})
    ((_, first), (_, second)) = checkpoints_in(tmp_path)
    second.rename(second.with_name("side_2"))
    again = make(folders)
    state = again.restore(tmp_path)
    assert state is not None
    assert (state["step"], again.version) == (3, 1)
    assert checkpoints_in(tmp_path) == [(1, first)]
    # Of what the kill left, nothing is in the way of the step that is done again.
    again.step(PROMPTS, samples(again), REWARDS)
    again.save(tmp_path, {"step": 4})
    for name, value in make_restored(folders, tmp_path).weights().items():
        assert torch.equal(value, learner.weights()[name]), name


def make_restored(folders: Folders, folder: Path) -> Learner:
    learner = make(folders)
    assert learner.restore(folder) is not None
    return learner


def test_a_checkpoint_of_an_earlier_version_is_named(folders, tmp_path: Path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="by an earlier version, whose checkpoint is in another format: remove"):
        make(folders).restore(tmp_path)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_critic_starts_from_the_rewards_that_are_given(folders, tmp_path: Path, weight: float):
    # At an answer's end its value is what the reward model gives: normalized, and times its weight.
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


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    models = {"policy": learner.policy, "critic": learner.critic}
    return {
        f"{name}.{key}": value.detach().clone()
        for name, model in models.items()
        if model is not None
        for key, value in model.named_parameters()
    }


def assert_equal(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named_before_any_step(folders, reward: float):
    # With one row a minibatch, a step on the finite rows would come first.
    learner = make(folders, minibatches=4)
    before = weights_of(learner)
    with pytest.raises(StageError, match=f"sample 1 of prompt 'b' is {reward}"):
        learner.step(PROMPTS, samples(learner), [[1.0, -1.0], [0.0, reward]])
    assert_equal(weights_of(learner), before)
    assert not learner.optimizers["policy"].state


def test_a_batch_of_fewer_samples_than_minibatches_is_learned_from(folders):
    learner = make(folders, minibatches=8)
    before = weights_of(learner)
    learner.step(PROMPTS, samples(learner), REWARDS)
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(learner).items())


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


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_learner_still_knows_the_model_that_it_began_with(folders, lora: Lora | None):
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


def exported(learner: Learner, folder: Path, within_limits: bool) -> dict[str, torch.Tensor]:
    learner.export(folder, within_limits)
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


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


def test_length_change_is_relative_to_the_first_step(folders, tmp_path: Path):
    learner = make(folders)
    assert learner.step(PROMPTS, samples(learner), REWARDS)["length_change"] == 1
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders)
    again.restore(tmp_path / "checkpoint")
    first, second = samples(again)
    figures = again.step(PROMPTS, [first[:1], second[1:]], [[1.0], [0.5]])
    assert figures["length_change"] == pytest.approx(3.5 / (11 / 4))


def test_signs_of_over_optimization_compare_with_the_first_step_across_a_restart(folders, tmp_path: Path):
    learner = make(folders)
    first, second = samples(learner)
    assert learner.step(PROMPTS, [first, second], REWARDS)["overoptimization"] == 0
    learner.save(tmp_path / "checkpoint", {})
    again = make(folders)
    again.restore(tmp_path / "checkpoint")
    figures = [own.step(PROMPTS, [first[:1] * 2, second], REWARDS) for own in (learner, again)]
    assert figures[0]["token_divergence"] > 0
    assert figures[0]["overoptimization"] == pytest.approx(figures[0]["token_divergence"] / 2)
    assert [row["overoptimization"] for row in figures] == [figures[0]["overoptimization"]] * 2


def test_length_is_correlated_with_reward_within_prompts_alone(folders):
    first, second = samples(make(folders))

    def length_correlation(groups: list[list[Sample]], rewards: list[list[float]]) -> float:
        return sample_metrics(groups, rewards)["length_correlation"]

    # Answers of 3 and 2, and of 2 and 4 tokens; what one prompt's rewards are above the other's says nothing.
    assert length_correlation([first, second], [[1.0, 0.0], [10.0, 12.0]]) == pytest.approx(1)
    assert length_correlation([first, second], [[0.0, 1.0], [12.0, 10.0]]) == pytest.approx(-1)
    deviations = np.array([[0.5, -0.5, -1.0, 1.0], [0.5, -0.5, 1.0, -1.0]])
    expected = np.corrcoef(deviations)[0, 1]
    assert length_correlation([first, second], [[1.0, 0.0], [12.0, 10.0]]) == pytest.approx(expected)
    assert length_correlation([first, second], [[1.0, 1.0], [2.0, 2.0]]) == 0


def test_without_limits_no_second_policy_is_held(folders):
    learner = make(folders)
    learner.step(PROMPTS, samples(learner), REWARDS)
    assert learner.last_within_limits is None
