"""Log-probabilities of the tokens that a model wrote, and the entropy of the distributions they were drawn from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from actors.model.attention.prefix_sharing import states_at
from actors.model.chunked_cross_entropy import token_losses
from actors.model.forward import output_logits, scaled_states
from actors.model.microbatch import pad_rows
from cluster.runtime.memory import LOGITS_AT_ONCE


def pad_completions(
    sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int], padding: int
) -> tuple[Tensor, Tensor]:
    """Makes a batch of prompts with their completions.

    Args:
        sequences: N rows of token ids, prompt and completion.
        prompt_lengths: the number of tokens of each prompt.
        padding: the token id that rows are filled up with, at the right.

    Returns:
        Token ids [N, T], and the completion mask, bool [N, T].
    """
    masks = [
        [False] * start + [True] * (len(ids) - start) for ids, start in zip(sequences, prompt_lengths, strict=True)
    ]
    return pad_rows(sequences, padding), pad_rows(masks, False)


def completion_states(model: Any, input_ids: Tensor, completion_mask: Tensor, groups: Tensor) -> Tensor:
    """Computes the hidden states that predict the masked tokens.

    Args:
        input_ids: [N, T], prompt and completion, padding at the right.
        completion_mask: bool [N, T], the tokens that were drawn; the first of a row never is.
        groups: [N]; rows of one group begin with the same prompt.

    Returns:
        [M, H] for the M masked tokens, row by row.
    """
    predicts = functional.pad(completion_mask[:, 1:], (0, 1))
    return states_at(model, input_ids, predicts, completion_mask.int().argmax(1), groups)


def completion_logprobs(
    model: Any, input_ids: Tensor, completion_mask: Tensor, groups: Tensor, temperature: float = 1.0
) -> Tensor:
    """Computes the log-probabilities of the masked tokens, in nats. Arguments as of `completion_states`.

    Returns:
        [N, T], float32, 0 outside the mask.
    """
    states = scaled_states(model, completion_states(model, input_ids, completion_mask, groups))
    targets = input_ids[:, 1:][completion_mask[:, 1:]]
    losses = token_losses(
        model.get_output_embeddings(), states, targets, LOGITS_AT_ONCE[states.device.type], temperature
    )
    return _scatter(-losses, completion_mask)


def completion_logprobs_and_entropy(
    model: Any, input_ids: Tensor, completion_mask: Tensor, groups: Tensor, temperature: float, entropy_learns: bool
) -> tuple[Tensor, Tensor]:
    """Computes `completion_logprobs`, and the entropy in nats of the distribution that every token was drawn from.

    Args:
        entropy_learns: whether the entropy has a gradient.

    Returns:
        [N, T] each, float32, 0 outside the mask.
    """
    logits = output_logits(model, completion_states(model, input_ids, completion_mask, groups)).float()
    # Another pass over all logits, and one back: 0.04 of 1.1 s of a step of the demo.
    distribution = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    targets = input_ids[:, 1:][completion_mask[:, 1:]]
    chosen = distribution.gather(1, targets.unsqueeze(1)).squeeze(1)
    with torch.set_grad_enabled(entropy_learns and torch.is_grad_enabled()):
        entropy = -(distribution.exp() * distribution).sum(-1)
    return _scatter(chosen, completion_mask), _scatter(entropy, completion_mask)


def _scatter(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Puts the values of M tokens at their places. [M], [N, T] -> [N, T]."""
    table = torch.zeros(completion_mask.shape, dtype=values.dtype, device=values.device)
    mask = completion_mask.clone()
    mask[:, 0] = False
    return table.masked_scatter(mask, values)
