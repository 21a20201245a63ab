"""What a Ray Train worker runs: the training loop that pre-training, fine-tuning and the reward model share."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import ray.train
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from actors.model.optimiser import learning_rate_factor, optimisers
from actors.model.sharding import WithLoss, shard
from actors.stream import Shard
from cluster.failures import StageError
from cluster.metrics import MetricsWriter
from cluster.recipe import Training
from cluster.run import SCRATCH

MAXIMUM_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs.

    Attributes:
        make: builds the model, its objective and the tokenizer it is saved with; the same on every worker.
        rows: rows of all training shards together.
        held_out: shards that are never trained on.
        out: the folder that `metrics.jsonl` and, at the end, the model go to. All workers see it.
        threads: torch threads of a worker.
    """

    settings: Training
    make: Callable[[], tuple[Any, Any, Any]]
    rows: int
    held_out: list[Shard]
    out: Path
    threads: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole job; the last one may be smaller."""
        return math.ceil(self.rows * self.settings.epochs / self.settings.batch_rows)


def train(config: dict[str, Any]) -> None:
    """The loop of one worker. Every worker reads the whole stream and trains on its share of each global batch, so the
    sequence of global batches, and the number the loss is divided by, is the same for any number of workers."""
    job: TrainingJob = config["job"]
    settings = job.settings
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    plain, objective, tokenizer = job.make()
    model = shard(WithLoss(plain.to(device), objective), workers, device)
    steppers = optimisers(model, settings.optimiser, settings.learning_rate, settings.weight_decay)
    start = _restore(model, steppers)
    metrics = MetricsWriter(job.out, resume_at=start) if rank == 0 else None
    clock, counted = time.monotonic(), 0

    for step, rows in _global_batches(start, settings.batch_rows):
        total = objective.count(objective.collate(rows))
        learning_rate = _set_learning_rate(steppers, settings, step, job.steps)
        loss, figures = _accumulate(model, objective, rows, rank, workers, total, settings, device)
        norm = _whole(torch.nn.utils.clip_grad_norm_(model.parameters(), MAXIMUM_GRADIENT_NORM))
        loss, figures = _sum_over_workers(loss, figures, workers, device)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss} and the gradient norm {norm} at step {step}"
            raise StageError(f"{what}: lower the learning rate ({settings.learning_rate})")
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        counted += total
        last = step + 1 == job.steps
        if metrics:
            values = {
                "loss": loss,
                "learning_rate": learning_rate,
                "gradient_norm": norm,
                objective.unit: total,
                f"{objective.unit}_per_second": counted / (time.monotonic() - clock),
                **figures,
            }
        if last or (step + 1) % settings.checkpoint_every == 0:
            held_out = evaluate(model, objective, job.held_out, rank, workers, settings, device)
            if metrics:
                metrics.write(step, **values, **{f"held_out_{name}": value for name, value in held_out.items()})
            if last:
                _export(model, plain, tokenizer, job.out, rank)
            _checkpoint(model, steppers, step + 1, job.out, rank)
        elif metrics:
            metrics.write(step, **values)


def evaluate(
    model: WithLoss,
    objective: Any,
    shards: list[Shard],
    rank: int,
    workers: int,
    settings: Training,
    device: torch.device,
) -> dict[str, float]:
    """Mean loss per unit over rows that are never trained on, and the objective's own figures, over all workers."""
    model.eval()
    loss, count, figures = 0.0, 0, dict[str, float]()
    with torch.no_grad(), _precision(settings, device):
        for part in shards:
            table = parquet.read_table(part.path)
            # Every worker takes as many forward passes as the others: FSDP gathers parameters in step.
            for begin in range(0, table.num_rows, settings.micro_batch_rows * workers):
                rows = table.slice(begin, settings.micro_batch_rows * workers)
                own = rows.take(list(range(rank, rows.num_rows, workers)) or [0])
                batch = _to(objective.collate(own), device)
                part_loss, part_figures = model(batch)
                own_rows = rank < rows.num_rows
                figures = {n: figures.get(n, 0.0) + (value if own_rows else 0.0) for n, value in part_figures.items()}
                if own_rows:
                    loss += float(part_loss)
                    count += objective.count(batch)
    model.train()
    loss, figures = _sum_over_workers(loss, {**figures, objective.unit: count}, workers, device)
    return {"loss": loss / figures[objective.unit], **figures} if figures[objective.unit] else {}


def _global_batches(start: int, batch_rows: int) -> Iterator[tuple[int, pa.Table]]:
    stream = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=batch_rows, batch_format="pyarrow", prefetch_batches=2
    )
    due = start * batch_rows
    for rows in stream:
        first = rows["position"][0].as_py()
        if first < due:
            continue
        if first != due:
            raise StageError(f"the data stream gave row {first} where row {due} is due")
        yield first // batch_rows, rows
        due += rows.num_rows


def _accumulate(
    model: WithLoss,
    objective: Any,
    rows: pa.Table,
    rank: int,
    workers: int,
    total: int,
    settings: Training,
    device: torch.device,
) -> tuple[float, dict[str, float]]:
    """Gradients of this worker's rows, divided by the units of the global batch. FSDP averages over workers, so the
    loss is multiplied by their number."""
    loss, figures = 0.0, dict[str, float]()
    size = settings.micro_batch_rows
    for begin in range(0, math.ceil(rows.num_rows / workers), size):
        own = list(range(rank + begin * workers, rows.num_rows, workers))[:size]
        # A worker without rows left still takes part in the gathers, with weight 0.
        batch = _to(objective.collate(rows.take(own or [0])), device)
        with _precision(settings, device):
            part, part_figures = model(batch)
        (part * ((workers if own else 0) / max(1, total))).backward()
        # Every worker names the same figures, so that they can be summed.
        figures = {name: figures.get(name, 0.0) + (value if own else 0.0) for name, value in part_figures.items()}
        if own:
            loss += float(part.detach()) / max(1, total)
    return loss, figures


def _set_learning_rate(steppers: list[Optimizer], settings: Training, step: int, steps: int) -> float:
    rate = settings.learning_rate * learning_rate_factor(step, steps, settings.warmup_share, settings.decay_share)
    for group in (group for stepper in steppers for group in stepper.param_groups):
        group["lr"] = rate
    return rate


def _precision(settings: Training, device: torch.device) -> AbstractContextManager[Any]:
    if settings.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _sum_over_workers(
    loss: float, figures: dict[str, float], workers: int, device: torch.device
) -> tuple[float, dict[str, float]]:
    if workers == 1:
        return loss, figures
    names = sorted(figures)
    values = torch.tensor([loss, *(figures[name] for name in names)], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return float(values[0]), dict(zip(names, values[1:].tolist(), strict=True))


def _whole(norm: torch.Tensor) -> float:
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _to(batch: Any, device: torch.device) -> Any:
    return type(batch)(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


def _checkpoint(model: WithLoss, steppers: list[Optimizer], step: int, out: Path, rank: int) -> None:
    weights, state = get_state_dict(model, steppers)
    # Below Ray Train's own folder, which goes when the stage is done, with what a kill leaves in it.
    (out / SCRATCH).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out / SCRATCH) as folder:
        dcp.save({"model": weights, "optimiser": state}, checkpoint_id=folder)
        if rank == 0:
            (Path(folder) / "step.json").write_text(json.dumps(step))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(model: WithLoss, steppers: list[Optimizer]) -> int:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        weights, state = get_state_dict(model, steppers)
        dcp.load({"model": weights, "optimiser": state}, checkpoint_id=folder)
        set_state_dict(model, steppers, model_state_dict=weights, optim_state_dict=state)
        return int(json.loads((Path(folder) / "step.json").read_text()))


def _export(model: WithLoss, plain: Any, tokenizer: Any, out: Path, rank: int) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = {
        name.removeprefix("model."): value for name, value in get_model_state_dict(model, options=options).items()
    }
    if rank == 0:
        plain.save_pretrained(out, state_dict=weights)
        tokenizer.save_pretrained(out)
