"""Centers and scales advantages, over the samples of a prompt or over a whole batch.

Numbers that differ by rounding alone are equal: AdamW divides a gradient by its own size, so that advantages of 1e-8
would move the weights as far as advantages of 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Neighbors in float32, in which rewards are computed, are 6e-8 of their size apart. A deviation below this share of the
# largest number is rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of the group that each row is in; all float64 [N].

    Attributes:
        difference: the row's value minus the group's mean; 0 if the group's values are equal up to rounding.
        deviation: the group's standard deviation, biased (divided by the size); 0 likewise.
        size: the number of rows in the group.
    """

    difference: Tensor
    deviation: Tensor
    size: Tensor


def are_equal(values: Sequence[float]) -> bool:
    """Says whether numbers are the same up to rounding."""
    return max(values) - min(values) <= ROUNDING * max(map(abs, values))


def group_statistics(values: Tensor, groups: Tensor) -> GroupStatistics:
    """Compares each value with the others of its group. [N], [N] -> [N] each."""
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    values, size = values.double(), counts[index].double()
    zeros = torch.zeros(len(counts), dtype=values.dtype, device=values.device)
    difference = values - zeros.index_add(0, index, values)[index] / size
    deviation = (zeros.index_add(0, index, difference.square())[index] / size).sqrt()
    largest = zeros.scatter_reduce(0, index, values.abs(), "amax")[index]
    real = deviation > ROUNDING * largest
    return GroupStatistics(difference * real, deviation * real, size)


def whitened(values: Tensor, completion_mask: Tensor, *sources: Tensor) -> Tensor:
    """Gives the masked values mean 0 and deviation 1, and others 0. [N, T] -> [N, T].

    Values that are equal up to rounding become 0.

    Args:
        values: [N, T].
        completion_mask: bool [N, T].
        sources: [N, T] each, the numbers that `values` are sums and differences of, whose size decides what is
            rounding; by default the values themselves.
    """
    drawn = values[completion_mask].double()
    if not len(drawn):
        return torch.zeros_like(values)
    mean, deviation = drawn.mean(), drawn.std(unbiased=False)
    largest = max(float(source[completion_mask].abs().max()) for source in (values, *sources))
    if float(deviation) <= ROUNDING * largest:
        return torch.zeros_like(values)
    return ((values.double() - mean) / deviation * completion_mask).to(values.dtype)
