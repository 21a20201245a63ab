"""The cross-entropy of tokens by a language model's head, without all logits at once."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Losses = Callable[[Any, Tensor, Tensor], Tensor]


def token_losses(head: Any, states: Tensor, targets: Tensor, at_once: int) -> Tensor:
    """Cross-entropy of tokens, in float32.

    Where there would be more than `at_once` logits, tokens go through the head in chunks, and each chunk's logits are
    made again for its gradient: a second product with the head, for memory that does not grow with the batch.

    Args:
        head: from hidden states to logits over the vocabulary V.
        states: [N, H].
        targets: [N], ids.

    Returns:
        [N].
    """
    chunks = _chunks(head, states, targets, at_once)
    if len(chunks) == 1:
        return _token_losses(head, states, targets)
    return torch.cat([checkpoint(_token_losses, head, *chunk, use_reentrant=False) for chunk in chunks])


def summed_loss(head: Any, states: Tensor, targets: Tensor, at_once: int, compiled: bool = False) -> Tensor:
    """The sum of `token_losses`, where no logits are made again: as what a token's loss counts for is known before its
    logits are forgotten, a chunk's gradients are made with them (Hsu et al. 2024, "Liger Kernel", section 3.2).

    Args:
        compiled: by a kernel compiled when it is first called, which does not write the logits in float32: twice as
            fast with a vocabulary of 49,152 on two cores, 1.25 times a whole step of 135M parameters on an H100.
    """
    losses = _compiled_token_losses() if compiled else _token_losses
    chunks = _chunks(head, states, targets, at_once)
    if not torch.is_grad_enabled():
        return torch.stack([losses(head, *chunk).sum() for chunk in chunks]).sum()
    if len(chunks) == 1:
        return losses(head, states, targets).sum()
    return _SummedInChunks.apply(losses, head, chunks, states, *head.parameters())


class _SummedInChunks(torch.autograd.Function):
    """The sum of the losses of chunks of `states`; gradients with regard to these and the head's parameters."""

    @staticmethod
    def forward(
        ctx: Any, losses: Losses, head: Any, chunks: list[tuple[Tensor, Tensor]], states: Tensor, *parameters: Tensor
    ) -> Tensor:
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        total = states.new_zeros((), dtype=torch.float32)
        of_states, of_head = list[Tensor](), list[Tensor]()
        for part, targets in chunks:
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = losses(head, leaf, targets).sum()
            own, *others = torch.autograd.grad(loss, [leaf, *learning])
            total += loss.detach()
            of_states.append(own)
            of_head = [old.add_(new) for old, new in zip(of_head, others, strict=True)] if of_head else list(others)
        ctx.save_for_backward(torch.cat(of_states), *of_head)
        ctx.learns = [parameter.requires_grad for parameter in parameters]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, counts: Tensor) -> Any:
        of_states, *of_head = ctx.saved_tensors
        rest = iter(of_head)
        return None, None, None, of_states * counts, *(next(rest) * counts if own else None for own in ctx.learns)


def _chunks(head: Any, states: Tensor, targets: Tensor, at_once: int) -> list[tuple[Tensor, Tensor]]:
    size = max(1, at_once // head.weight.shape[0])
    return list(zip(states.split(size), targets.split(size), strict=True))


def _token_losses(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="none")


@cache
def _compiled_token_losses() -> Losses:
    # Not at import: PyTorch's compiler takes two seconds to load.
    return torch.compile(_token_losses, dynamic=True)
