import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from scipy import stats

from actors.types import Failure, RolloutId, Sample
from cluster.errors import StageError
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID, pack
from pipelines.evaluate.held_out import RewardedAnswers, paired_changes
from pipelines.evaluate.perplexity import perplexity, text_rows
from pipelines.evaluate.stats import paired_change
from pipelines.evaluate.verdict import preference_verdict, reward_verdict
from tests.helpers import DEMO


def sample(tokens: list[int], finish: str) -> Sample:
    return Sample(RolloutId(0, "p", 0), tokens, [-1.0] * len(tokens), [1] * len(tokens), finish, "text")


def test_paired_change_has_the_interval_of_a_paired_t_test():
    chance = np.random.default_rng(1)
    before = chance.normal(size=30)
    after = before + chance.normal(0.3, 0.5, size=30)
    found = paired_change(before.tolist(), after.tolist())
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.change == pytest.approx(found.after - found.before)
    single = paired_change([1.0], [2.0])
    assert (single.change, single.low, single.high) == (1.0, None, None)
    verdict = reward_verdict({"reward": single, "response_length": single}, held_out=True, alone=True)
    assert "is no better and no worse" in verdict
    assert "one prompt is too few for an interval of the change" in verdict


def test_changes_are_of_prompt_means():
    before = RewardedAnswers([[sample([1, 2], "stop"), sample([1, 2, 3, 4], "length")]] * 2, [[0.0, 1.0], [2.0, 3.0]])
    after = RewardedAnswers([[sample([5, 5, 5, 5, 5], "stop")]] * 2, [[1.5], [3.5]])
    found = paired_changes(before, after)
    assert (found["reward"].before, found["reward"].after, found["reward"].n) == (1.5, 2.5, 2)
    # Both prompts gain 1.
    assert found["reward"].low == found["reward"].high == 1.0
    assert (found["response_length"].before, found["response_length"].after) == (3, 5)
    assert (found["stop_rate"].before, found["stop_rate"].after) == (0.5, 1)
    assert (found["repetition"].before, found["repetition"].after) == pytest.approx((0, 2 / 3))


def test_prompts_without_rewards_of_both_models_are_counted():
    one, failed = [sample([1], "stop")], Failure("no verdict")
    before = RewardedAnswers([one] * 3, [[failed], [1.0], [1.0]])
    after = RewardedAnswers([one] * 3, [[1.0], [failed], [failed]])
    with pytest.raises(
        StageError, match=r"^3 held-out prompts read, 0 left.*\(no reward before training 1, none after it 2"
    ):
        paired_changes(before, after)


def test_perplexity_of_a_uniform_model_is_its_vocabulary_size():
    rows = [[0] * 11, [0] * 31]
    nats = {
        name: [10 * math.log(size), 30 * math.log(size)] for name, size in (("base", 8), ("sft", 10), ("policy", 11))
    }
    found = perplexity(rows, nats)
    assert (found.base, found.sft, found.policy) == pytest.approx((8, 10, 11))
    # All rows change alike, so that the interval has no width.
    change = found.reinforcement
    assert (change.change, change.low, change.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (found.fine_tuning.change, found.alignment.change) == pytest.approx((0.25, 0.375))
    assert (found.tokens, found.rows) == (40, 2)


def test_text_rows_leave_out_padding_and_split_documents(tmp_path: Path):
    rows, held_out = pack([[5, 6, 7], [8, 9]], context=8), tmp_path / "corpus" / "shards" / "held_out"
    held_out.mkdir(parents=True)
    table = pa.table({"input_ids": rows.input_ids.tolist(), "document_ids": rows.document_ids.tolist()})
    parquet.write_table(table, held_out / "shard-00000.parquet")
    assert (rows.document_ids == PAD_DOCUMENT_ID).sum() == 3
    assert text_rows(load_recipe(DEMO), RunFolder(tmp_path)) == [[5, 6, 7], [8, 9]]


def test_the_perplexity_interval_covers_the_true_change_in_95_percent():
    """Rows of 5 to 60 tokens whose loss rises by 0.05 nats per token on average."""
    chance, covered = np.random.default_rng(2), 0
    for _ in range(400):
        rows = [[0] * length for length in chance.integers(6, 62, size=80)]
        before = [chance.normal(2.0, 1.0) * (len(row) - 1) for row in rows]
        after = [nats + chance.normal(0.05, 0.2) * (len(row) - 1) for nats, row in zip(before, rows, strict=True)]
        found = perplexity(rows, {"base": before, "sft": before, "policy": after})
        change = found.reinforcement
        assert change.low is not None
        assert change.high is not None
        covered += change.low <= math.expm1(0.05) <= change.high
    assert 0.92 <= covered / 400 <= 0.975


def test_verdicts_describe_only_changes_beyond_chance():
    same = paired_change([10.0, 20.0, 30.0], [10.0, 20.1, 29.9])
    up, down = paired_change([0.0, 0.1, 0.2], [1.0, 1.2, 1.3]), paired_change([1.0, 1.2, 1.3], [0.0, 0.1, 0.2])
    better = reward_verdict({"reward": up, "response_length": same}, held_out=True, alone=True)
    assert better.startswith(
        "By its rewards the policy is better than the fine-tuned model: on 3 prompts that RLHF did"
    )
    assert "did not train on they rose from 0.10 to 1.17 (95% interval of the change +0.92 to +1.21)." in better
    assert "Answers became" not in better
    worse = reward_verdict({"reward": down, "response_length": up}, held_out=False, alone=False)
    assert worse.startswith("Its rewards on 3 prompts that RLHF trained on too fell from 1.17 to 0.10")
    assert "Answers became longer: 0 tokens before, 1 after." in worse
    taught = reward_verdict({"reward": same, "response_length": same}, held_out=True, alone=True, rewarded=False)
    assert taught == "The policy learned from a teacher alone: no rewards tell whether it is better."
    equal = reward_verdict({"reward": same, "response_length": down}, held_out=True, alone=True)
    assert "is no better and no worse than the fine-tuned model" in equal
    assert "Answers became shorter" in equal
    pairs = {"n": 400, "value": 0.6}
    assert "probability with the held-out rankings" in preference_verdict({**pairs, "low": 0.55, "high": 0.65})
    against = preference_verdict({"n": 400, "value": 0.4, "low": 0.35, "high": 0.45})
    assert "probability against the held-out rankings" in against
    assert "60% of 400 pairs (95% interval 49% to 70%)" in preference_verdict({**pairs, "low": 0.49, "high": 0.7})
