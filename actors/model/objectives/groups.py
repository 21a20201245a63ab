"""Comparing the samples of one prompt."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """Statistics of the group that each row is in; all [N].

    Attributes:
        difference: the row's value minus the group's mean.
        deviation: the group's standard deviation, biased (divided by the size).
        size: rows in the group.
    """

    difference: Tensor
    deviation: Tensor
    size: Tensor


def compare(values: Tensor, groups: Tensor) -> Compared:
    """Each value beside the others of its group. [N], [N] -> [N] each."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    size = counts[index].to(values.dtype)
    zeros = torch.zeros(len(counts), dtype=values.dtype, device=values.device)
    difference = values - zeros.index_add(0, index, values)[index] / size
    variance = zeros.index_add(0, index, difference.square())[index] / size
    return Compared(difference, variance.sqrt(), size)
