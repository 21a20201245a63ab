"""Which rows of a batch a worker of the learner computes, and in what micro-batches."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from actors.model.batches import Part
from actors.model.objectives.policy import RolloutBatch


def pieces(part: Part, rows: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """This worker's part of rows in micro-batches, and whether each counts: FSDP gathers parameters in step, so that
    all workers have as many, one that has too few rows some that do not count.

    Groups go to the workers in turn, whole where there are enough: rows of like length lie together, and the answers to
    a prompt share its row.

    Args:
        rows: numbers of rows, [N].
        groups: [N], which prompt each answers.
    """
    _, turn = groups.unique_consecutive(return_inverse=True)
    turn = turn.to(rows.device) if int(turn[-1]) + 1 >= part.workers else torch.arange(len(rows), device=rows.device)
    parts = [rows[turn % part.workers == rank] for rank in range(part.workers)]
    count = max(math.ceil(len(own) / part.micro_batch_rows) for own in parts)
    for piece in parts[part.rank].tensor_split(count):
        yield (piece, True) if len(piece) else (rows[:1], False)


def in_pieces(part: Part, function: Callable[[RolloutBatch], Tensor], batch: RolloutBatch) -> Tensor:
    """A function's values [N, T] of all rows, on every worker."""
    found = torch.zeros_like(batch.behaviour)
    for piece, counts in pieces(part, torch.arange(len(batch.rewards), device=part.device), batch.groups):
        own = batch.rows(piece)
        values = function(own)
        if counts:
            found[piece, : own.width] = values
    return from_all_workers(part, found)


def from_all_workers(part: Part, found: Tensor) -> Tensor:
    """Fills in the rows that others have computed; they are 0 here."""
    if part.workers > 1:
        dist.all_reduce(found)
    return found
