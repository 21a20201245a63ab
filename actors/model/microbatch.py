"""Gradients and losses of a global batch, whatever the workers and micro-batches it is split into."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
import torch.distributed as dist

from actors.model.fsdp import WithLoss

Figures = dict[str, float]


@dataclass(frozen=True)
class WorkerPart:
    """One worker's part of every batch, and how it computes it.

    Attributes:
        rank: the worker takes rows rank, rank + workers, rank + 2 · workers …
        workers: how many there are.
        micro_batch_rows: most rows of one forward pass.
        precision: bfloat16 (autocast, weights stay float32) or float32.
    """

    rank: int
    workers: int
    micro_batch_rows: int
    precision: str
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def accumulate(model: WithLoss, objective: Any, rows: pa.Table, total: int, part: WorkerPart) -> tuple[float, Figures]:
    """Adds the gradients of this worker's rows, divided by the units of the global batch.

    FSDP averages over workers, so the loss is multiplied by their number.

    Args:
        rows: the global batch.
        total: its units, such as trained tokens, over all workers.

    Returns:
        This worker's share of the mean loss, and the sums of the objective's figures over its rows.
    """
    losses, figures = [], Figures()
    size = part.micro_batch_rows
    rows = _by_length(rows)
    for begin in range(0, math.ceil(rows.num_rows / part.workers), size):
        own = list(range(part.rank + begin * part.workers, rows.num_rows, part.workers))[:size]
        # A worker without rows left still takes part in the gathers, with weight 0.
        batch = to_device(objective.collate(rows.take(own or [0])), part.device)
        with part.autocast():
            summed, found = model(batch)
        (summed * ((part.workers if own else 0) / max(1, total))).backward()
        # Every worker names the same figures, so that they can be summed.
        figures = {name: figures.get(name, 0.0) + (value if own else 0.0) for name, value in found.items()}
        if own:
            losses.append(summed.detach())
    # Read at the end: a GPU would stand still while the next micro-batch is made.
    return sum(float(loss) / max(1, total) for loss in losses), figures


@torch.no_grad()
def evaluate(model: WithLoss, objective: Any, tables: Iterable[pa.Table], part: WorkerPart) -> Figures:
    """Mean loss per unit over rows that are never trained on, and the objective's own figures, over all workers."""
    model.eval()
    loss, count, figures = 0.0, 0, Figures()
    for table in map(_by_length, tables):
        # Every worker takes as many forward passes as the others: FSDP gathers parameters in step.
        for begin in range(0, table.num_rows, part.micro_batch_rows * part.workers):
            rows = table.slice(begin, part.micro_batch_rows * part.workers)
            own = rows.take(list(range(part.rank, rows.num_rows, part.workers)) or [0])
            batch = to_device(objective.collate(own), part.device)
            with part.autocast():
                summed, found = model(batch)
            own_rows = part.rank < rows.num_rows
            figures = {name: figures.get(name, 0.0) + (value if own_rows else 0.0) for name, value in found.items()}
            if own_rows:
                loss += float(summed)
                count += objective.count(batch)
    model.train()
    loss, figures = sum_over_workers(loss, {**figures, objective.unit: count}, part)
    return {"loss": loss / figures[objective.unit], **figures} if figures[objective.unit] else {}


def _by_length(rows: pa.Table) -> pa.Table:
    """Rows of like length share a micro-batch, so that little of it is padding."""
    return rows.take(np.argsort(compute.list_value_length(rows["input_ids"]), kind="stable"))


def sum_over_workers(loss: float, figures: Figures, part: WorkerPart) -> tuple[float, Figures]:
    """The sums over all workers, on each of them."""
    if part.workers == 1:
        return loss, figures
    names = sorted(figures)
    values = torch.tensor([loss, *(figures[name] for name in names)], dtype=torch.float64, device=part.device)
    dist.all_reduce(values)
    return float(values[0]), dict(zip(names, values[1:].tolist(), strict=True))


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch, a dataclass of tensors, on the device."""
    return type(batch)(**{name: tensor.to(device) for name, tensor in vars(batch).items()})
