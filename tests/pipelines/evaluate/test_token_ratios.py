from actors.orchestrator.scheduler import TrainBatch
from actors.types import Prompt, RewardInput, RolloutId, Sample
from pipelines.evaluate.token_ratios import MAX_PROMPTS, token_ratios
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ANSWER = TOKENIZER.encode("Lima")


class UniformLearner:
    """A learner whose fine-tuned model gives every token the same probability."""

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool
    ) -> list[list[float]]:
        assert (fine_tuned, temperature) == (True, 1.0)
        return [[-2.0] * (len(row) - start) for row, start in zip(sequences, starts, strict=True)]


def sample(name: str, level: float, drawn: list[bool] | None = None) -> Sample:
    return Sample(RolloutId(0, name, 0), ANSWER, [level] * len(ANSWER), [3] * len(ANSWER), "stop", "Lima", drawn or [])


def scored(count: int, rewards: list[float], groups: list[Sample]) -> TrainBatch:
    prompts = [Prompt(str(number), [2, 10, 3]) for number in range(count)]
    return TrainBatch(prompts=prompts, groups=[groups] * count, rewards=[rewards] * count)


def test_the_best_and_the_worst_answer_have_a_log_ratio_for_every_token():
    batch = scored(9, [0.0, 2.0, -1.0], [sample("0", -2.0), sample("0", -0.5), sample("0", -3.0)])
    questions = {str(number): RewardInput([{"role": "user", "content": f"Q{number}"}], {}) for number in range(9)}
    found = token_ratios(batch, UniformLearner(), TOKENIZER, questions, 1.0)
    assert [row["given"] for row in found] == [f"Q{number}" for number in range(MAX_PROMPTS)]
    best, worst = found[0]["answers"]
    assert (best["reward"], worst["reward"]) == (2.0, -1.0)
    assert "".join(text for text, _ in best["tokens"]) == "Lima"
    assert {ratio for _, ratio in best["tokens"]} == {1.5}
    assert {ratio for _, ratio in worst["tokens"]} == {-1.0}


def test_equal_rewards_give_one_answer_and_user_tokens_have_no_ratio():
    drawn = [True] * (len(ANSWER) - 1) + [False]
    batch = scored(1, [1.0, 1.0], [sample("0", -1.0, drawn)] * 2)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (row,) = token_ratios(batch, UniformLearner(), TOKENIZER, {"0": RewardInput(messages, {})}, 1.0)
    assert row["given"] == "user: a\nassistant: b"
    (answer,) = row["answers"]
    assert [ratio for _, ratio in answer["tokens"]] == [1.0] * (len(ANSWER) - 1) + [None]
