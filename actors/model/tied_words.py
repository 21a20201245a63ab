"""The words of a model whose head is tied to its embeddings: looked up and scored with one weight, one gradient."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


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
