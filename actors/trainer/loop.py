"""What a Ray Train worker runs: the training loop that pre-training, fine-tuning and the reward model share."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import ray.train
import torch
from torch.optim import Optimizer

from actors.model.causal_lm import bits_per_byte
from actors.model.fsdp import WithLoss, full_tensor, shard
from actors.model.generation import Opening, continuations, openings, read
from actors.model.microbatch import WorkerPart, accumulate, evaluate, sum_over_workers
from actors.model.optim import learning_rate_factor, make_optimizers
from actors.model.perf import (
    compile_layers,
    compiling_pays,
    flops_per_token,
    native_precision,
    peak_flops,
    peak_memory_gb,
)
from actors.objectives.lm import LanguageObjective
from actors.trainer.checkpoint import Checkpoints, export
from actors.trainer.data import Shard, row_batches
from actors.trainer.job import FAILURE, TrainingJob, held_out_loss
from actors.trainer.watchdog import Deadline
from cluster.errors import StageError, UserError
from cluster.recipe.training import Training
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH
from cluster.run.metrics import MetricsWriter, read_metrics

MAXIMUM_GRADIENT_NORM = 1.0
# How often workers ask whether nodes will be taken away: all at the same step, which took two on two cores 5 ms.
NOTICE_SECONDS = 5.0
# Of the continuations at a checkpoint, how many are kept to be read.
SHOWN_SAMPLES = 8


class NotFiniteError(StageError):
    """The loss or its gradient is not a number, or infinite, more often in a row than the recipe allows."""


def train(job: TrainingJob) -> None:
    """Trains, or goes on from the newest checkpoint, on one worker of Ray Train.

    After any exception the workers are started again. What they would meet again, a model that is refused, a wrong
    row, a loss that is not finite or a full disk, is therefore written down for the driver, and the workers end. All of
    them meet it at the same step, because they make the same model, read the whole stream and know the whole loss: none
    is left waiting for the others. A worker that waits longer than the job's deadline ends by itself, and those that
    are started in its place end at once.
    """
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    if (job.out / SCRATCH / FAILURE).exists():
        return
    with Deadline(job.deadline, partial(_write_failure, job)) as deadline:
        try:
            deadline.begin("a model to train")
            # State on a GPU is copied to the CPU's memory in any case; a CPU would have to hold it twice.
            with Checkpoints(job.out, rank, workers, asynchronous=torch.cuda.is_available()) as checkpoints:
                _train(job, rank, workers, deadline, checkpoints, *job.make())
        except (UserError, StageError) as failure:
            if rank == 0:
                _write_failure(job, failure)


def _write_failure(job: TrainingJob, failure: UserError | StageError) -> None:
    (job.out / SCRATCH).mkdir(exist_ok=True)
    kind = UserError if isinstance(failure, UserError) else StageError
    write_json(job.out / SCRATCH / FAILURE, {"kind": kind.__name__, "message": str(failure)})


def _train(
    job: TrainingJob,
    rank: int,
    workers: int,
    deadline: Deadline,
    checkpoints: Checkpoints,
    unwrapped_model: Any,
    objective: Any,
    tokenizer: Any,
) -> None:
    """The loop of one worker. Every worker reads the whole stream and trains on its share of each global batch, so the
    sequence of global batches, and the number the loss is divided by, is the same for any number of workers."""
    settings = job.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings.precision or native_precision(device)
    part = WorkerPart(rank, workers, settings.micro_batch_rows, precision, device)
    vocabulary = unwrapped_model.get_input_embeddings().num_embeddings
    if settings.recompute_activations:
        unwrapped_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = settings.compile_layers
    if compiled is None:
        compiled = (
            workers == 1 and isinstance(objective, LanguageObjective) and _compiling_pays(job, unwrapped_model, device)
        )
    if compiled:
        compile_layers(unwrapped_model, objective)
    model = shard(WithLoss(unwrapped_model.to(device), objective), workers, device).train()
    optimizers = make_optimizers(model, settings.optimizer, settings.learning_rate, settings.weight_decay)
    start = checkpoints.restore(model, optimizers)
    earlier = read_metrics(job.out)
    lowest = min(map(held_out_loss, earlier[:start]), default=math.inf)
    given = openings(_held_out_rows(job.held_out, vocabulary), job.samples)
    # A model that is fine-tuned has something to lose; one that is new has nothing to show.
    ask_first = start == 0 and bool(given) and given[0].is_prompt
    untrained = _held_out(job, model, tokenizer, given, part, compiled) if ask_first else {}
    metrics = MetricsWriter(job.out, resume_at=start) if rank == 0 else None
    speed = Speed(unwrapped_model, part) if rank == 0 else None
    skipped = 0
    noticed, asked = None, time.monotonic()

    for step, rows, waited in _global_batches(job, start, deadline):
        check_ids(rows, vocabulary, f"a row of step {step}")
        batch = objective.collate(rows)
        total = objective.count(batch)
        learning_rate = _set_learning_rate(optimizers, settings, step, job.steps)
        loss, figures = accumulate(model, objective, rows, total, part)
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), MAXIMUM_GRADIENT_NORM)))
        loss, figures = sum_over_workers(loss, {**figures, "since": time.monotonic() - asked}, part)
        since = figures.pop("since") / workers
        finite = math.isfinite(loss) and math.isfinite(norm)
        skipped = 0 if finite else skipped + 1
        if skipped > settings.skip_nonfinite_steps:
            what = f"the loss is {loss} and the gradient norm {norm} at step {step}"
            before = f", and so {skipped - 1} steps before it were" if skipped > 1 else ""
            raise NotFiniteError(f"{what}{before}: lower the learning rate ({settings.learning_rate})")
        for stepper in optimizers:
            if finite:
                stepper.step()
            stepper.zero_grad(set_to_none=True)
        last = step + 1 == job.steps
        values: dict[str, Any] = {"learning_rate": learning_rate}
        if step == start and earlier:
            values |= {"lost_steps": len(earlier) - start, "recovery_seconds": time.time() - earlier[-1]["time"]}
        if step == 0:
            values |= {f"{name}_before": value for name, value in untrained.items()}
        if metrics and speed:
            speed.add(total if finite else 0, batch.input_ids, waited)
            values |= {"loss": loss, "gradient_norm": norm, **figures} if finite else {"skipped": 1}
            values |= {objective.unit: total if finite else 0, **speed.figures(objective.unit)}
        due = last or (step + 1) % settings.checkpoint_every == 0
        keep = last
        if due:
            values |= _held_out(job, model, tokenizer, given, part, compiled)
            if settings.keep == "best":
                keep = held_out_loss(values) < lowest
                lowest = min(lowest, held_out_loss(values))
                if last and lowest == math.inf:
                    raise NotFiniteError("the held-out loss was never finite: there is no best model to keep")
        if metrics:
            metrics.write(step, **values)
        if keep:
            export(model, unwrapped_model, tokenizer, job.out, rank)
        notice = noticed
        if since > NOTICE_SECONDS:
            notice, asked = ray.train.get_preemption_info(), time.monotonic()
        if due or notice != noticed:
            checkpoints.save(model, optimizers, step + 1)
        noticed = notice


def _compiling_pays(job: TrainingJob, unwrapped_model: Any, device: torch.device) -> bool:
    first = next(parquet.ParquetFile(job.shards[0].path).iter_batches(1, columns=["input_ids"]))
    length = len(first["input_ids"][0])
    return compiling_pays(unwrapped_model, job.steps * job.settings.batch_rows * length, length, device)


class Speed:
    """What the first worker measures from its first step on: rates, and what they are of the possible."""

    def __init__(self, model: Any, part: WorkerPart) -> None:
        self.model, self.workers, self.device = model, part.workers, part.device
        self.peak = peak_flops(part.device, part.precision)
        self.start = time.monotonic()
        self.units, self.flops, self.waited = 0, 0.0, 0.0

    def add(self, units: int, input_ids: torch.Tensor, waited: float) -> None:
        """A global batch, [rows, length], which came after so many seconds of waiting for data."""
        self.units += units
        self.flops += input_ids.numel() * flops_per_token(self.model, input_ids.shape[1])
        self.waited += waited

    def figures(self, unit: str) -> dict[str, float]:
        """Units a second; model FLOPs utilization, which counts padding and checkpoints; share of waiting for data;
        memory."""
        seconds = time.monotonic() - self.start
        return {
            f"{unit}_per_second": self.units / seconds,
            "mfu": self.flops / seconds / (self.peak * self.workers),
            "data_wait_share": self.waited / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }


def _global_batches(job: TrainingJob, start: int, deadline: Deadline) -> Iterator[tuple[int, pa.Table, float]]:
    """Steps from `start` on, the rows of each and the seconds that they were waited for.

    Not split: every worker reads the stream and takes its own rows of each batch. Token ids are small.
    """
    size = job.settings.batch_rows
    batches = row_batches(job.shards, job.settings.epochs, job.seed, start * size, size)
    for step in range(start, job.steps):
        asked = time.monotonic()
        deadline.begin(f"the rows of step {step}")
        rows = next(batches)
        deadline.begin(f"step {step} of training")
        yield step, rows, time.monotonic() - asked


def check_ids(rows: pa.Table, vocabulary: int, where: str) -> None:
    """An id without an embedding would stop a GPU with an error that names nothing.

    Raises:
        UserError: a token's id is not in the vocabulary.
    """
    limits = compute.min_max(compute.list_flatten(rows["input_ids"])).as_py()
    for found in (limits["min"], limits["max"]):
        if found is not None and not 0 <= found < vocabulary:
            raise UserError(
                f"{where} holds the token id {found}, and the model has {vocabulary} embeddings: it was tokenized for "
                "another model; run the stage that wrote it again"
            )


def _held_out_rows(shards: list[Shard], vocabulary: int) -> Iterator[pa.Table]:
    for part in shards:
        table = parquet.read_table(part.path)
        check_ids(table, vocabulary, f"a row of {part.path}")
        yield table


def _held_out(
    job: TrainingJob, model: WithLoss, tokenizer: Any, given: list[Opening], part: WorkerPart, compiled: bool
) -> dict[str, Any]:
    """What the model makes of what it is never trained on: its loss, and how it goes on with a few texts."""
    objective, unwrapped_model = model.objective, model.model
    vocabulary = unwrapped_model.get_input_embeddings().num_embeddings
    # Compiled layers would be compiled again for rows of other lengths.
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        found = evaluate(model, objective, _held_out_rows(job.held_out, vocabulary), part)
        written = (
            continuations(model, given, job.sample_tokens, unwrapped_model.config.eos_token_id, part) if given else []
        )
    values: dict[str, Any] = {f"held_out_{name}": value for name, value in found.items()}
    if job.held_out_bytes and found:
        values["held_out_bits_per_byte"] = bits_per_byte(found["loss"], found[objective.unit], job.held_out_bytes)
    return values | read(tokenizer, given, written, SHOWN_SAMPLES) if given else values


def _set_learning_rate(optimizers: list[Optimizer], settings: Training, step: int, steps: int) -> float:
    factor = learning_rate_factor(step, steps, settings.warmup_share, settings.decay_share, settings.schedule)
    rate = settings.learning_rate * factor
    for group in (group for stepper in optimizers for group in stepper.param_groups):
        group["lr"] = rate
    return rate
