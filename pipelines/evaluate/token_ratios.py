"""Log-ratios of policy to fine-tuned model for every token of some answers of an RLHF step, for the run page."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from actors.orchestrator.scheduler import TrainBatch
from actors.types import RewardInput

MAX_PROMPTS = 4


class LogprobLearner(Protocol):
    """A learner that gives log-probabilities under its policy and under the fine-tuned model it started from."""

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool
    ) -> list[list[float]]:
        """Computes the log-probabilities, in nats, of each sequence's tokens from its start on; see `Learner`."""


def token_ratios(
    batch: TrainBatch,
    learner: LogprobLearner,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, RewardInput],
    temperature: float,
) -> list[dict[str, Any]]:
    """Computes log-ratios for the answers of highest and of lowest reward to the first prompts of a batch.

    Args:
        batch: the batch of a step.
        learner: scores the answers.
        tokenizer: decodes their tokens.
        inputs: the prompts as text, by id.
        temperature: the sampling temperature.

    Returns:
        For every prompt its text `given` and its `answers`, each with its `reward` and `tokens`: the text of each token
        and log(policy / fine-tuned model) in nats, under the weights that generated it; None in place of the ratio for
        tokens that the policy did not generate.
    """
    chosen = [
        (prompt, group[number], rewards[number])
        for prompt, group, rewards in zip(batch.prompts[:MAX_PROMPTS], batch.groups, batch.rewards, strict=False)
        for number in dict.fromkeys((rewards.index(max(rewards)), rewards.index(min(rewards))))
    ]
    sequences = [prompt.token_ids + sample.token_ids for prompt, sample, _ in chosen]
    starts = [len(prompt.token_ids) for prompt, _, _ in chosen]
    rows: dict[str, dict[str, Any]] = {}
    for (prompt, sample, reward), reference in zip(
        chosen, learner.logprobs(sequences, starts, temperature, fine_tuned=True), strict=True
    ):
        ratios = [
            round(own - other, 4) if generated else None
            for own, other, generated in zip(sample.logprobs, reference, sample.loss_mask, strict=True)
        ]
        tokens = [[tokenizer.decode([token]), ratio] for token, ratio in zip(sample.token_ids, ratios, strict=True)]
        row = rows.setdefault(prompt.id, {"given": inputs[prompt.id].text, "answers": []})
        row["answers"].append({"reward": round(reward, 4), "tokens": tokens})
    return list(rows.values())
