"""Gradients and losses of a global batch, whatever the number of workers and micro-batches it is split into."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence

from actors.types import OwnRows

Metrics = dict[str, float]
# From a collated batch to its summed loss and the objective's metrics.
SummedLoss = Callable[[Any], tuple[Tensor, Metrics]]


class Objective(Protocol):
    """A loss over rows of a table.

    Attributes:
        unit: the name of what the loss is averaged over, such as tokens.
        dropout: whether the model is trained with the dropout that its configuration names (`actors.model.dropout`).
    """

    unit: str
    dropout: bool

    def collate(self, rows: pa.Table) -> Any:
        """Makes a batch, a dataclass of tensors, of rows."""

    def count(self, batch: Any) -> int:
        """Returns the number of units in a batch."""

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Metrics]:
        """Returns the loss summed over the units of a batch, and sums of further metrics."""


@dataclass(frozen=True)
class DataParallelRank:
    """A worker's place among all workers, and how it computes.

    Attributes:
        rank: of a batch, the worker takes rows rank, rank + world_size, rank + 2 · world_size …
        world_size: the number of workers.
        micro_batch_rows: the most rows of one forward pass.
        precision: bfloat16 (autocast, weights stay float32) or float32.
    """

    rank: int
    world_size: int
    micro_batch_rows: int
    precision: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def pad_rows(rows: Sequence[Sequence[float] | Tensor], padding: float, left: bool = False) -> Tensor:
    """Stacks N rows of unequal lengths, filled up to the longest length T at the right, or at the left. -> [N, T]."""
    tensors = [torch.as_tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=padding, padding_side="left" if left else "right")


def accumulate(
    summed_loss: SummedLoss,
    objective: Objective,
    rows: pa.Table | OwnRows,
    total: int,
    worker: DataParallelRank,
    weight: float = 1.0,
    reduce_once: bool = False,
) -> tuple[float, Metrics]:
    """Adds the gradients of this worker's rows, divided by the units of the global batch.

    FSDP averages over workers, so the loss is multiplied by their number.

    Args:
        summed_loss: the objective's loss by the model that is trained.
        rows: the global batch, or this worker's rows of it.
        total: the units, such as trained tokens, that the global batch has over all workers.
        weight: a factor on the gradients alone.
        reduce_once: whether workers that share the model add up their gradients after the last micro-batch alone, and
            not after each; every worker then holds whole gradients until there.

    Returns:
        This worker's share of the mean loss, and the sums of the objective's metrics over its rows.
    """
    losses, metrics = [], Metrics()
    own = _own_rows(rows, worker) if isinstance(rows, pa.Table) else rows
    left = len(_begins(own, worker))
    for batch, counts in _own_batches(own, objective, worker):
        left -= 1
        if isinstance(summed_loss, FSDPModule):
            summed_loss.set_requires_gradient_sync(not (reduce_once and left))
        with worker.autocast():
            summed, found = summed_loss(batch)
        (summed * (weight * (worker.world_size if counts else 0) / max(1, total))).backward()
        # Every worker names the same metrics, so that they can be summed.
        metrics = {name: metrics.get(name, 0.0) + (value if counts else 0.0) for name, value in found.items()}
        if counts:
            losses.append(summed.detach())
    # Read at the end: a GPU would stand still while the next micro-batch is made.
    return sum(float(loss) / max(1, total) for loss in losses), metrics


@torch.no_grad()
def evaluate(model: Any, objective: Objective, tables: Iterable[pa.Table], worker: DataParallelRank) -> Metrics:
    """Returns the mean loss per unit over held-out rows, and the sums of the objective's metrics, over all workers."""
    model.eval()
    loss, count, metrics = 0.0, 0, Metrics()
    for table in tables:
        for batch, counts in _own_batches(_own_rows(table, worker), objective, worker):
            with worker.autocast():
                summed, found = model(batch)
            metrics = {name: metrics.get(name, 0.0) + (value if counts else 0.0) for name, value in found.items()}
            if counts:
                loss += float(summed)
                count += objective.count(batch)
    model.train()
    loss, metrics = sum_over_workers(loss, {**metrics, objective.unit: count}, worker)
    return {"loss": loss / metrics[objective.unit], **metrics} if metrics[objective.unit] else {}


def _own_rows(rows: pa.Table, worker: DataParallelRank) -> OwnRows:
    """Takes this worker's rows of a global batch. Rows of similar length share a micro-batch, over all workers, so that
    little of it is padding."""
    by_length = np.argsort(compute.list_value_length(rows["input_ids"]), kind="stable")
    own = by_length[worker.rank :: worker.world_size]
    return OwnRows(rows.take(own if len(own) else by_length[:1]), len(own), rows.num_rows)


def _begins(rows: OwnRows, worker: DataParallelRank) -> range:
    """Returns the first row of each micro-batch of the worker that has most rows."""
    return range(0, math.ceil(rows.together / worker.world_size), worker.micro_batch_rows)


def _own_batches(rows: OwnRows, objective: Objective, worker: DataParallelRank) -> Iterator[tuple[Any, bool]]:
    """Yields this worker's micro-batches, and whether each counts.

    FSDP gathers parameters in step: a worker without rows left makes as many forward passes as the others.
    """
    for begin in _begins(rows, worker):
        counts = begin < rows.own
        part = rows.rows.slice(begin, worker.micro_batch_rows) if counts else rows.rows.slice(0, 1)
        yield to_device(objective.collate(part), worker.device), counts


def grouped_microbatches(worker: DataParallelRank, rows: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Yields the rows of this worker's micro-batches, and whether each counts.

    FSDP gathers parameters in step: all workers make as many forward passes, and one that has too few rows makes some
    that do not count. Groups go to the workers in turn, whole where there are enough of them: rows of like length lie
    together, and the completions of a prompt share its row. Unlike the micro-batches of `accumulate`, which are full
    but for the last, those of a worker are of like size.

    Args:
        rows: [N], numbers of rows.
        groups: [N], the group of each row.
    """
    _, turn = groups.unique_consecutive(return_inverse=True)
    enough = int(turn[-1]) + 1 >= worker.world_size
    turn = turn.to(rows.device) if enough else torch.arange(len(rows), device=rows.device)
    rows_of = [rows[turn % worker.world_size == rank] for rank in range(worker.world_size)]
    count = max(math.ceil(len(own) / worker.micro_batch_rows) for own in rows_of)
    for own in rows_of[worker.rank].tensor_split(count):
        yield (own, True) if len(own) else (rows[:1], False)


def sum_over_workers(loss: float, metrics: Metrics, worker: DataParallelRank) -> tuple[float, Metrics]:
    """Returns the sums over all workers, on each of them."""
    if worker.world_size == 1:
        return loss, metrics
    names = sorted(metrics)
    values = torch.tensor([loss, *(metrics[name] for name in names)], dtype=torch.float64, device=worker.device)
    dist.all_reduce(values)
    return float(values[0]), dict(zip(names, values[1:].tolist(), strict=True))


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves a batch, a dataclass of tensors, to the device."""
    return type(batch)(**{name: tensor.to(device) for name, tensor in vars(batch).items()})
