"""The reference of preference optimization: the model that training starts from, which the policy is compared with."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from actors.model import lora
from actors.model.attention.packed import set_attention
from actors.model.completion_logprobs import completion_logprobs
from actors.model.dropout import without_dropout
from actors.model.microbatch import DataParallelRank
from actors.model.sharding.fsdp import ShardedModel


def answer_logprobs(model: Any, input_ids: Tensor, completion_mask: Tensor, groups: Tensor) -> Tensor:
    """Computes the log-probability of each answer, in nats.

    Args:
        input_ids: [N, T], prompt and answer, padding at the right.
        completion_mask: bool [N, T], the tokens of the answer.
        groups: [N]; rows of one group begin with the same prompt.

    Returns:
        [N], float32.
    """
    return completion_logprobs(model, input_ids, completion_mask, groups).sum(1)


class Reference:
    """Computes log-ratios log π(y|x) / π_ref(y|x) of answers.

    The reference computes each batch beside the policy, on its device, in its precision and with the same padding:
    before the first step both give the same numbers, and every log-ratio is 0. Computed at another time or place they
    would differ by rounding, in bfloat16 by margins of 0.006.

    Args:
        model: a causal language model, which is not trained; None where the policy has adapters: without them it is
            the reference.
    """

    def __init__(self, model: Any | None) -> None:
        self.model = model
        self._compute: Callable[..., Tensor] = lambda function, *batch: function(self.model, *batch)
        if model is not None:
            model.requires_grad_(False)
            without_dropout(model)
            set_attention(model)

    def place(self, worker: DataParallelRank) -> None:
        """Moves the model to the worker's device, and shards it as the policy is."""
        if self.model is not None:
            self._compute = ShardedModel(self.model, worker.world_size, worker.device, nullcontext)

    def log_ratios(self, policy: Any, input_ids: Tensor, completion_mask: Tensor, groups: Tensor) -> Tensor:
        """Computes the log-ratio of each answer, in nats, with a gradient for the policy. Arguments as of
        `answer_logprobs`. -> [N], float32."""
        batch = input_ids, completion_mask, groups
        with torch.no_grad():
            if self.model is None:
                with lora.disabled(policy):
                    reference = answer_logprobs(policy, *batch)
            else:
                reference = self._compute(answer_logprobs, *batch)
        return answer_logprobs(policy, *batch) - reference
