"""The learner, on a tiny model and hand-made samples."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from actors.learner import Learner
from actors.model.heads import with_new_head
from actors.model.language import build
from actors.sample import Prompt, Sample
from actors.stream import Shard
from cluster.failures import StageError
from cluster.recipe import Model, Rlhf
from tests.actors.conftest import save_tokenizer

PROMPTS = [Prompt("a", [2, 10, 11, 4, 3]), Prompt("b", [2, 12, 4, 3])]
ANSWERS = [[[20, 21, 4], [22, 4]], [[23, 4], [24, 25, 26, 4]]]
REWARDS = [[1.0, -1.0], [0.5, -0.5]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Shard]]:
    root = tmp_path_factory.mktemp("learner")
    model = build(Model(vocabulary=300, hidden=64, layers=2, heads=2, context=64), 0, end_of_turn=4, padding=0)
    model.save_pretrained(root / "sft")
    save_tokenizer(root / "sft")
    with_new_head(root / "sft").save_pretrained(root / "reward")
    rows = {"input_ids": [[30, 31, 32, 0], [33, 34, 0, 0]], "document_ids": [[0, 0, 0, 0], [0, 0, 0, -1]]}
    table = pa.table({name: pa.array(value, pa.list_(pa.int32())) for name, value in rows.items()})
    parquet.write_table(table, root / "text.parquet")
    return root / "sft", root / "reward", [Shard(str(root / "text.parquet"), 2)]


def make(folders: tuple[Path, Path, list[Shard]], **settings: object) -> Learner:
    return Learner(Rlhf(**{"learning_rate": 1e-3, **settings}), *folders, seed=0, threads=1)


def samples(learner: Learner) -> list[list[Sample]]:
    groups = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        rows = [prompt.token_ids + answer for answer in answers]
        logprobs = learner.logprobs(rows, [len(prompt.token_ids)] * len(rows), 1.0)
        versions = [learner.version] * 9
        groups.append(
            [
                Sample(prompt.id, index, answer, values, versions[: len(answer)], "stop", "")
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
    assert figures["behaviour_gap"] < 1e-5
    assert figures["kl"] == pytest.approx(0, abs=1e-6)
    assert (figures["version"], figures["tokens"]) == (1, 11)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_micro_batches_change_nothing(folders, algorithm: str):
    # AdamW's first step is the sign of the gradient where that is tiny, so it is the gradient that is compared.
    whole, split = (make(folders, algorithm=algorithm, micro_batch_rows=rows, pretrain_mix=0.1) for rows in (4, 1))
    figures = [learner.step(PROMPTS, samples(learner), REWARDS) for learner in (whole, split)]
    for name in ("loss", "gradient_norm", "entropy", "kl_k3", "value_loss", "pretrain_loss"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-4, abs=1e-7), name
    assert figures[0]["gradient_norm"] > 0


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_resuming_equals_going_on(folders, algorithm: str, tmp_path: Path):
    first = make(folders, algorithm=algorithm)
    first.step(PROMPTS, samples(first), REWARDS)
    first.save(tmp_path / "checkpoint", {"step": 1})
    second = make(folders, algorithm=algorithm)
    state = second.restore(tmp_path / "checkpoint")
    assert state is not None
    assert (state["step"], second.version) == (1, 1)
    for learner in (first, second):
        learner.step(PROMPTS, samples(learner), REWARDS)
    for name, value in first.weights().items():
        assert torch.equal(value, second.weights()[name]), name


def test_nothing_to_restore(folders, tmp_path: Path):
    assert make(folders).restore(tmp_path / "none") is None


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(folders, tmp_path: Path):
    learner = make(folders)
    learner.save(tmp_path / "checkpoint", {"step": 3})
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    state = make(folders).restore(tmp_path / "checkpoint")
    assert state is not None
    assert state["step"] == 3


def test_the_critic_learns_the_returns(folders):
    learner = make(folders, algorithm="ppo", kl_coefficient=0.0, clip_range=10.0)
    drawn = samples(learner)
    losses = [learner.step(PROMPTS, drawn, REWARDS)["value_loss"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_reward_that_is_no_number_changes_no_weight(folders):
    learner = make(folders)
    before = learner.weights()
    with pytest.raises(StageError, match="learning_rate"):
        learner.step(PROMPTS, samples(learner), [[float("nan"), 1.0], [0.0, 1.0]])
    for name, value in learner.weights().items():
        assert torch.equal(value, before[name]), name
