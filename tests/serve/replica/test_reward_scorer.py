"""The reward model behind /v1/score, against an independent computation."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.run.versions import Version
from cluster.runtime.plan import Allocation
from serve.replica.replica import is_reward_model
from serve.replica.reward_scorer import MOST_CONVERSATIONS, RewardScorer
from serve.transport.messages import CompleteResponse, ResponseStart
from tests.tiny import write_tiny_reward_model

CONTEXT = 64
MEAN, DEVIATION = 0.3, 1.7
ASKED = {"role": "user", "content": "What is the capital of Peru?"}
TALKS = [
    [ASKED, {"role": "assistant", "content": "Lima."}],
    [ASKED, {"role": "assistant", "content": "She sells sea shells, and how do I stop coughing?"}],
    [{"role": "system", "content": "Be short."}, ASKED, {"role": "assistant", "content": ""}],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    write_tiny_reward_model(path, MEAN, DEVIATION)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> RewardScorer:
    return RewardScorer("reward", Version(folder, "abc"), CONTEXT, Allocation(cpus=1, gpus=0, threads=1))


def ask(scorer: RewardScorer, body: dict, endpoint: str = "score") -> CompleteResponse:
    async def whole() -> list:
        return [part async for part in scorer.answer(endpoint, body)]

    *opening, reply = asyncio.run(whole())
    assert opening in ([], [ResponseStart(scorer.weights)])
    assert scorer.running == 0
    return reply


def test_rewards_are_those_of_the_classifier_one_by_one_on_the_scale_of_the_training(
    folder: Path, scorer: RewardScorer
) -> None:
    """transformers' own pooling at the last token, each conversation alone and unpadded."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    rows = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in TALKS]
    with torch.no_grad():
        logits = [model(torch.tensor([row])).logits.item() for row in rows]
    reply = ask(scorer, {"model": "reward", "conversations": TALKS})
    assert reply.status == 200
    assert [row["index"] for row in reply.body["data"]] == [0, 1, 2]
    expected = [(logit - MEAN) / DEVIATION for logit in logits]
    assert [row["score"] for row in reply.body["data"]] == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) == 3
    assert reply.body["usage"]["prompt_tokens"] == sum(map(len, rows))


def test_a_conversation_without_a_finite_score_has_a_reason_and_the_others_their_scores(scorer: RewardScorer) -> None:
    expected = [row["score"] for row in ask(scorer, {"model": "reward", "conversations": TALKS}).body["data"]]
    first, broken, last = (set(scorer.chat.conversation(talk).token_ids) for talk in TALKS)
    embeddings = scorer.reward.models[0].get_input_embeddings().weight.data
    kept = embeddings.clone()
    embeddings[list(broken - first - last)] = torch.nan
    data = ask(scorer, {"model": "reward", "conversations": TALKS}).body["data"]
    embeddings.copy_(kept)
    assert data[1] == {
        "index": 1,
        "object": "score",
        "score": None,
        "error": "the reward model gave nan, for prompt 'conversations.1'",
    }
    assert [data[0]["score"], data[2]["score"]] == pytest.approx([expected[0], expected[2]])


@pytest.mark.parametrize(
    ("conversations", "words"),
    [
        ([], "conversations"),
        ([[]], "conversations.0"),
        ("text", "conversations"),
        ([[ASKED]], "the last message must be the assistant's"),
        ([[{"role": "root", "content": "x"}]], "conversations.0.0.role"),
        ([TALKS[0], [ASKED, {"role": "assistant", "content": "Lima " * 100}]], "conversations.1: the maximum context"),
        ([TALKS[0]] * (MOST_CONVERSATIONS + 1), "at most 128"),
    ],
)
def test_wrong_requests_are_400(scorer: RewardScorer, conversations: object, words: str) -> None:
    reply = ask(scorer, {"model": "reward", "conversations": conversations})
    assert (reply.status, reply.body["error"]["code"]) == (400, 400)
    assert words in reply.body["error"]["message"]


def test_other_weights_give_other_rewards(folder: Path, scorer: RewardScorer, tmp_path: Path) -> None:
    before, old = ask(scorer, {"model": "reward", "conversations": TALKS}), scorer.weights
    shutil.copytree(folder, tmp_path / "new")
    (tmp_path / "new" / "normalization.json").write_text(json.dumps({"mean": MEAN + 1, "deviation": DEVIATION}))
    assert asyncio.run(scorer.promote(tmp_path / "new", "new")).error is None
    after = ask(scorer, {"model": "reward", "conversations": TALKS})
    asyncio.run(scorer.promote(folder, old))
    for row, was in zip(after.body["data"], before.body["data"], strict=True):
        assert row["score"] == pytest.approx(was["score"] - 1 / DEVIATION, abs=1e-5)


def test_a_reward_model_does_not_write(folder: Path, scorer: RewardScorer) -> None:
    reply = ask(scorer, {"model": "reward", "prompt": "x"}, "completions")
    assert (reply.status, reply.body["error"]["param"]) == (400, "model")
    assert is_reward_model(folder)
    assert not is_reward_model(folder.parent)
