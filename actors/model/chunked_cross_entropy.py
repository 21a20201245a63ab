"""The cross-entropy of tokens by a language model's head, without all logits at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cluster.runtime.memory import LOGIT_BYTES

# Logits that are made together. On a CPU they then lie in its cache until they are used: with 2,048 tokens of width 960
# and 49,152 words, a loss and its gradients take 0.67 s on two cores, and 0.81 with all logits together.
LOGITS_TOGETHER = {"cpu": 1 << 22, "cuda": 1 << 28}


def token_losses(head: Any, states: Tensor, targets: Tensor, at_once: int, temperature: float = 1.0) -> Tensor:
    """Computes the cross-entropy of tokens in nats, in float32.

    Where there would be more than `at_once` logits, tokens go through the head in chunks, and each chunk's logits are
    made again for its gradient: a second product with the head, for memory that does not grow with the batch.

    Args:
        head: the layer from hidden states to logits over the vocabulary V.
        states: [N, H].
        targets: [N], ids.
        temperature: a divisor of the logits.

    Returns:
        [N].
    """
    size = max(1, at_once // head.weight.shape[0])
    if len(states) <= size:
        return _token_losses(head, states, targets, temperature)
    chunks = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(_token_losses, head, *chunk, temperature, use_reentrant=False) for chunk in chunks])


def summed_loss(head: Any, states: Tensor, targets: Tensor, at_once: int, compiled: bool = False) -> Tensor:
    """Computes the sum of `token_losses`, to be trained on.

    No logits are made twice: the factor of a token's loss is known before its logits are freed, so that the gradients
    are made with them (Hsu et al. 2024, "Liger Kernel", section 3.2).

    Args:
        at_once: logits may take the memory of so many logits of `token_losses`, LOGIT_BYTES each.
        compiled: whether the operations on each logit are compiled at their first use. They then take 0.67 s in place
            of 0.97 for the 2,048 tokens above; a whole step of 135M parameters on an H100 is 1.25 times as fast.
    """
    if len(states) * head.weight.shape[0] <= at_once:
        return _maybe_compiled(_token_losses, compiled)(head, states, targets).sum()
    unbiased = isinstance(head, TiedHead) or (isinstance(head, nn.Linear) and head.bias is None)
    if not unbiased or not torch.is_grad_enabled():
        return token_losses(head, states, targets, at_once).sum()
    return _SummedLoss.apply(states, head.weight, targets, at_once, compiled)


def _token_losses(head: Any, states: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    logits = head(states).float()
    return functional.cross_entropy(logits if temperature == 1 else logits / temperature, targets, reduction="none")


def _running_softmax(logits: Tensor, highest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the logits of further words, [N, W], into the highest logit of each token and the sum of exponentials
    relative to it, [N] each (Milakov and Gimelshein 2018)."""
    logits = logits.float()
    now = torch.maximum(highest, logits.amax(1))
    return now, total * torch.exp(highest - now) + torch.exp(logits - now.unsqueeze(1)).sum(1)


def _probabilities(logits: Tensor, normalizer: Tensor) -> Tensor:
    """Computes softmax values from the logarithm of their normalizer. [N, W], [N] -> [N, W]."""
    return torch.exp(logits.float() - normalizer.unsqueeze(1)).to(logits.dtype)


def _maybe_compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return _compiled(function) if compiled else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Not at import: PyTorch's compiler takes two seconds to load.
    return torch.compile(function, dynamic=True)


class _SummedLoss(torch.autograd.Function):
    """The summed loss of states [N, H] by a head's weight [V, H], multiplied in the type that autocast would."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, at_once: int, compiled: bool) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        chunks = math.ceil(len(states) * len(weight) * dtype.itemsize / (at_once * LOGIT_BYTES)) or 1
        most = max(1, math.ceil(len(states) / chunks))
        of_states = torch.zeros_like(states, dtype=torch.float32)
        of_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = states.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            slices = weight.to(dtype).split(max(1, LOGITS_TOGETHER[device] // most))
            into = [None] * len(slices) if of_weight is None else of_weight.split(len(slices[0]))
            parts = zip(states.to(dtype).split(most), targets.split(most), of_states.split(most), strict=True)
            for number, (some, own, slopes) in enumerate(parts):
                loss += _chunk_loss(some, own, slopes, list(zip(slices, into, strict=True)), compiled, number == 0)
        ctx.types = states.dtype, weight.dtype
        ctx.save_for_backward(of_states, *([] if of_weight is None else [of_weight]))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> Any:
        found = [slopes.mul_(factor).to(dtype) for slopes, dtype in zip(ctx.saved_tensors, ctx.types, strict=False)]
        return *found, *[None] * (5 - len(found))


def _chunk_loss(
    states: Tensor,
    targets: Tensor,
    of_states: Tensor,
    slices: list[tuple[Tensor, Tensor | None]],
    compiled: bool,
    first: bool,
) -> Tensor:
    """Computes the summed loss of a chunk of tokens, and its gradients.

    Args:
        of_states: the gradient with regard to the states is added to it.
        slices: parts of the head's weight, and where the gradient with regard to each is put, or added if this chunk is
            not the first.
    """
    running, probabilities = _maybe_compiled(_running_softmax, compiled), _maybe_compiled(_probabilities, compiled)
    highest = torch.full(targets.shape, -torch.inf, device=states.device)
    sums, logits = torch.zeros_like(highest), list[Tensor]()
    for weight, _ in slices:
        logits.append(states @ weight.T)
        highest, sums = running(logits[-1], highest, sums)
    normalizer, size = highest + sums.log(), len(slices[0][0])
    loss = normalizer.sum()
    for number, (weight, of_weight) in enumerate(slices):
        (rows,) = torch.nonzero(targets // size == number, as_tuple=True)
        columns = targets[rows] - number * size
        loss -= logits[number][rows, columns].float().sum()
        slopes = probabilities(logits[number], normalizer)
        slopes[rows, columns] -= 1
        of_states += slopes @ weight
        if of_weight is not None:
            put = of_weight.copy_ if first else of_weight.add_
            put(slopes.T @ states)
    return loss


@dataclass(frozen=True)
class TiedHead:
    """A head without bias whose weight [V, H] is that of the embeddings."""

    weight: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """Computes logits. [N, H] -> [N, V]."""
        return functional.linear(states, self.weight)


def tied_head_and_embeddings(model: Any, input_ids: Tensor) -> tuple[TiedHead, Tensor] | None:
    """Returns a head and the embeddings of tokens, [B, T] -> [B, T, H], whose gradients are summed in place.

    PyTorch's own gradient of embeddings makes a whole weight of zeros and adds that to the head's: 1.3 % of a step of
    135M parameters on two cores, and up to 5 % where memory is new to the process.

    None where the two are not tied, not trained, looked up in a way of the model's own, or on a GPU, which adds numbers
    of one place in an order that changes from run to run.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embedding.weight
    usual = type(embedding) is nn.Embedding and type(head) is nn.Linear and head.bias is None
    if not usual or head.weight is not weight or not weight.requires_grad or not weight.is_cpu:
        return None
    scored, embeddings = _TiedEmbedding.apply(weight, input_ids, embedding.padding_idx)
    return TiedHead(scored), embeddings


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.padding = padding
        ctx.save_for_backward(ids)
        return weight.view_as(weight), functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_weight: Tensor, of_embeddings: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        # The embedding of padding is not trained, as in torch.nn.Embedding.
        places = ids != ctx.padding if ctx.padding is not None else torch.ones_like(ids, dtype=torch.bool)
        return of_weight.index_add_(0, ids[places], of_embeddings[places].to(of_weight.dtype)), None, None
