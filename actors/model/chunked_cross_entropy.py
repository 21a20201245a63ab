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
    size = max(1, at_once // head.weight.shape[0])
    if len(states) <= size:
        return _token_losses(head, states, targets)
    chunks = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(_token_losses, head, *chunk, use_reentrant=False) for chunk in chunks])


def summed_loss(head: Any, states: Tensor, targets: Tensor, at_once: int, compiled: bool = False) -> Tensor:
    """The sum of `token_losses`, to be trained on. No logits are made twice: what a token's loss counts for is known
    before they are forgotten, so that the gradients are made with them (Hsu et al. 2024, "Liger Kernel", section 3.2).

    Args:
        at_once: the memory of so many logits of `token_losses`, LOGIT_BYTES each, is what the logits here may take.
        compiled: whether what is done to each logit is compiled when it is first needed. It then takes 0.67 s in place
            of 0.97 for the 2,048 tokens above; 1.25 times a whole step of 135M parameters on an H100.
    """
    if len(states) * head.weight.shape[0] <= at_once:
        return _made(_token_losses, compiled)(head, states, targets).sum()
    plain = isinstance(head, TiedHead) or (isinstance(head, nn.Linear) and head.bias is None)
    if not plain or not torch.is_grad_enabled():
        return token_losses(head, states, targets, at_once).sum()
    return _SummedLoss.apply(states, head.weight, targets, at_once, compiled)


def _token_losses(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(states).float(), targets, reduction="none")


def _running(logits: Tensor, highest: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the logits of further words, [N, W], into the highest logit of each token and the sum of exponentials
    relative to it, [N] each (Milakov and Gimelshein 2018)."""
    logits = logits.float()
    now = torch.maximum(highest, logits.amax(1))
    return now, total * torch.exp(highest - now) + torch.exp(logits - now.unsqueeze(1)).sum(1)


def _probabilities(logits: Tensor, normalizer: Tensor) -> Tensor:
    """[N, W], [N] -> [N, W]."""
    return torch.exp(logits.float() - normalizer.unsqueeze(1)).to(logits.dtype)


def _made(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return _compiled(function) if compiled else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Not at import: PyTorch's compiler takes two seconds to load.
    return torch.compile(function, dynamic=True)


class _SummedLoss(torch.autograd.Function):
    """Of states [N, H] and a head's weight [V, H], multiplied in the type that autocast would."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, at_once: int, compiled: bool) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        times = math.ceil(len(states) * len(weight) * dtype.itemsize / (at_once * LOGIT_BYTES)) or 1
        most = max(1, math.ceil(len(states) / times))
        of_states = torch.zeros_like(states, dtype=torch.float32)
        of_weight = torch.empty_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        loss = states.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            words = weight.to(dtype).split(max(1, LOGITS_TOGETHER[device] // most))
            into = [None] * len(words) if of_weight is None else of_weight.split(len(words[0]))
            pieces = zip(states.to(dtype).split(most), targets.split(most), of_states.split(most), strict=True)
            for number, (some, own, slopes) in enumerate(pieces):
                loss += _loss(some, own, slopes, list(zip(words, into, strict=True)), compiled, first=number == 0)
        ctx.types = states.dtype, weight.dtype
        ctx.save_for_backward(of_states, *([] if of_weight is None else [of_weight]))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, counts: Tensor) -> Any:
        found = [slopes.mul_(counts).to(dtype) for slopes, dtype in zip(ctx.saved_tensors, ctx.types, strict=False)]
        return *found, *[None] * (5 - len(found))


def _loss(
    states: Tensor,
    targets: Tensor,
    of_states: Tensor,
    words: list[tuple[Tensor, Tensor | None]],
    compiled: bool,
    first: bool,
) -> Tensor:
    """The summed loss of some tokens.

    Args:
        of_states: to which the gradient with regard to the states is added.
        words: parts of the head's weight, and where the gradient with regard to each is put, or added if these tokens
            are not the first.
    """
    running, probabilities = _made(_running, compiled), _made(_probabilities, compiled)
    highest = torch.full(targets.shape, -torch.inf, device=states.device)
    sums, logits = torch.zeros_like(highest), list[Tensor]()
    for part, _ in words:
        logits.append(states @ part.T)
        highest, sums = running(logits[-1], highest, sums)
    normalizer, size = highest + sums.log(), len(words[0][0])
    loss = normalizer.sum()
    for number, (part, of_part) in enumerate(words):
        (rows,) = torch.nonzero(targets // size == number, as_tuple=True)
        columns = targets[rows] - number * size
        loss -= logits[number][rows, columns].float().sum()
        slopes = probabilities(logits[number], normalizer)
        slopes[rows, columns] -= 1
        of_states += slopes @ part
        if of_part is not None:
            put = of_part.copy_ if first else of_part.add_
            put(slopes.T @ states)
    return loss


# The words of a model whose head is tied to its embeddings: looked up and scored with one weight, one gradient.
@dataclass(frozen=True)
class TiedHead:
    """A head without bias, of a weight [V, H]."""

    weight: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """[N, H] -> [N, V]."""
        return functional.linear(states, self.weight)


def tied_words(model: Any, input_ids: Tensor) -> tuple[TiedHead, Tensor] | None:
    """The head, and the embeddings of tokens, [B, T] -> [B, T, H], whose gradient is added to the head's where it lies.
    PyTorch's own makes a whole weight of zeros for it and adds that: 1.3 % of a step of 135M parameters on two cores,
    and up to 5 % where memory is new to the process.

    None where the two are not tied, not trained, looked up in a way of the model's own, or on a GPU, which adds numbers
    of one place in an order that changes from run to run.
    """
    embedding, head = model.get_input_embeddings(), model.lm_head
    weight = embedding.weight
    plain = type(embedding) is nn.Embedding and type(head) is nn.Linear and head.bias is None
    if not plain or head.weight is not weight or not weight.requires_grad or not weight.is_cpu:
        return None
    scored, embeddings = _TiedWords.apply(weight, input_ids, embedding.padding_idx)
    return TiedHead(scored), embeddings


class _TiedWords(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
        ctx.padding = padding
        ctx.save_for_backward(ids)
        return weight.view_as(weight), functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_weight: Tensor, of_embeddings: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        # As torch.nn.Embedding, which does not train padding.
        places = ids != ctx.padding if ctx.padding is not None else torch.ones_like(ids, dtype=torch.bool)
        return of_weight.index_add_(0, ids[places], of_embeddings[places].to(of_weight.dtype)), None, None
