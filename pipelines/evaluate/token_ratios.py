"""Answers from the midst of RLHF, token by token beside the fine-tuned model: what the run page shows of them."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from actors.orchestrator.scheduler import TrainBatch
from actors.types import RewardInput

PROMPTS = 4


class FineTuned(Protocol):
    """The learner, which still knows the model that it began with."""

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool
    ) -> list[list[float]]:
        """As `Learner.logprobs`."""


def token_ratios(
    batch: TrainBatch,
    learner: FineTuned,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, RewardInput],
    temperature: float,
) -> list[dict[str, Any]]:
    """The answers of highest and of lowest reward to the first prompts of a batch, for the metrics.

    Returns:
        for every prompt `given` and `answers`, each with its `reward` and `tokens`: what a token reads and
        log(policy / fine-tuned model), in nats, by the weights that drew it; none where the policy did not.
    """
    chosen = [
        (prompt, group[number], rewards[number])
        for prompt, group, rewards in zip(batch.prompts[:PROMPTS], batch.groups, batch.rewards, strict=False)
        for number in dict.fromkeys((rewards.index(max(rewards)), rewards.index(min(rewards))))
    ]
    rows = [prompt.token_ids + sample.token_ids for prompt, sample, _ in chosen]
    starts = [len(prompt.token_ids) for prompt, _, _ in chosen]
    found: dict[str, dict[str, Any]] = {}
    for (prompt, sample, reward), reference in zip(
        chosen, learner.logprobs(rows, starts, temperature, fine_tuned=True), strict=True
    ):
        ratios = [
            round(own - other, 4) if drawn else None
            for own, other, drawn in zip(sample.logprobs, reference, sample.loss_mask, strict=True)
        ]
        tokens = [[tokenizer.decode([token]), ratio] for token, ratio in zip(sample.token_ids, ratios, strict=True)]
        row = found.setdefault(prompt.id, {"given": inputs[prompt.id].text, "answers": []})
        row["answers"].append({"reward": round(reward, 4), "tokens": tokens})
    return list(found.values())
