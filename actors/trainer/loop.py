"""The training loop of a Ray Train worker, which pre-training, fine-tuning, the reward model and DPO share."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.parquet as parquet
import ray.train
import torch
import torch.distributed as dist
from torch.optim import Optimizer

from actors.model import lora
from actors.model.expert_balance import unused_auxiliary_loss
from actors.model.microbatch import DataParallelRank, accumulate, sum_over_workers
from actors.model.optim import AdamSettings, learning_rate_factor, make_optimizers
from actors.model.perf import (
    compile_layers,
    compiling_pays,
    flops_per_token,
    native_precision,
    peak_flops,
    peak_memory_gb,
)
from actors.model.sharding.fsdp import WithLoss, full_tensor, shard
from actors.objectives.dpo import PairObjective
from actors.objectives.kto import KtoObjective
from actors.objectives.lm import AUXILIARY_LOSS, LanguageObjective
from actors.trainer.checkpoint import Checkpoints, export, load_training_state, training_state
from actors.trainer.data import row_batches
from actors.trainer.held_out import HeldOut, check_ids
from actors.trainer.job import FAILURE, TrainingJob, held_out_loss
from actors.trainer.proof import note_export, proof_rows, prove_export
from actors.trainer.watchdog import Watchdog
from actors.types import OwnRows
from cluster.errors import StageError, UserError
from cluster.recipe.training import Training
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH
from cluster.run.metrics import MetricsWriter, read_metrics

# Seconds between two queries for notices of preemption. All workers query at the same step, which took two workers on
# two cores 5 ms.
NOTICE_SECONDS = 5.0


class NotFiniteError(StageError):
    """The loss or its gradient is not finite more often in a row than the recipe allows."""


def train(job: TrainingJob) -> None:
    """Trains as one worker of Ray Train, from the newest checkpoint if there is one.

    Ray Train starts the workers again after any exception. An error that they would meet again, such as a model that is
    refused, a wrong row, a loss that is not finite or a full disk, is therefore written down for the driver, and the
    workers end. All of them meet it at the same step, because they make the same model, and tell each other of wrong
    rows and of the whole loss: none is left waiting for the others. A worker that waits longer than the job's deadline
    ends by itself, and those that are started in its place end at once.
    """
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    if (job.out / SCRATCH / FAILURE).exists():
        return
    with Watchdog(job.deadline, partial(_write_failure, job)) as watchdog:
        try:
            watchdog.begin("a model to train")
            # State on a GPU is copied to CPU memory in any case; a CPU would have to hold it twice.
            with Checkpoints(job.out, rank, world_size, asynchronous=torch.cuda.is_available()) as checkpoints:
                _train(job, rank, world_size, watchdog, checkpoints, *job.make())
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
    world_size: int,
    watchdog: Watchdog,
    checkpoints: Checkpoints,
    unwrapped_model: Any,
    objective: Any,
    tokenizer: Any,
) -> None:
    """Runs the loop of one worker.

    The sequence of global batches, and the number the loss is divided by, is the same for any number of workers. Of
    packed rows, which have one length, a worker reads its own alone. Rows of unequal lengths are sorted over all
    workers, so that each reads all of them.
    """
    settings = job.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings.precision or native_precision(device)
    worker = DataParallelRank(rank, world_size, settings.micro_batch_rows, precision, device)
    vocabulary = unwrapped_model.get_input_embeddings().num_embeddings
    is_language = isinstance(objective, LanguageObjective)
    if rank == 0 and (unused := unused_auxiliary_loss(unwrapped_model, is_language)):
        print(unused, flush=True)
    if settings.recompute_activations:
        unwrapped_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = settings.compile_layers
    if compiled is None:
        compiled = world_size == 1 and is_language and _compiling_pays(job, unwrapped_model, device)
    if isinstance(objective, PairObjective | KtoObjective):
        objective.place(worker)
        if compiled and objective.reference.model is not None:
            # Compiled layers round otherwise.
            compile_layers(objective.reference.model)
    if compiled:
        compile_layers(unwrapped_model)
        if isinstance(objective, LanguageObjective):
            objective.compiled = True
    model = shard(WithLoss(unwrapped_model, objective), world_size, device).train()
    betas = (settings.adam_beta1, settings.adam_beta2)
    adam = AdamSettings(betas, settings.adam_epsilon, settings.weight_decay_on)
    optimizers = make_optimizers(model, settings.optimizer, settings.learning_rate, settings.weight_decay, adam)
    start = _restore(checkpoints, model, optimizers)
    earlier = read_metrics(job.out)
    lowest = min(map(held_out_loss, earlier[:start]), default=math.inf)
    proven = proof_rows(job.held_out)
    watchdog.begin("the held-out rows and the loss on them before training")
    held_out = HeldOut.of(job, objective, vocabulary, worker)
    # Only a model that is fine-tuned is measured before training: the figures of a random one say nothing.
    evaluate_first = start == 0 and bool(held_out.openings) and held_out.openings[0].is_prompt
    untrained = held_out.measure(job, model, tokenizer, worker, compiled) if evaluate_first else {}
    writer = MetricsWriter(job.out, resume_at=start, steps=job.steps) if rank == 0 else None
    throughput = Throughput(unwrapped_model, worker) if rank == 0 else None
    skipped = 0
    last_notice, queried_at = None, time.monotonic()

    reader = worker if isinstance(objective, LanguageObjective) else replace(worker, rank=0, world_size=1)
    for step, own, waited in _own_rows(job, start, watchdog, reader):
        counted = _counted(objective, own, vocabulary, step, reader)
        total, rows = counted.units, own if reader is worker else own.rows
        if isinstance(objective, KtoObjective):
            rows = objective.with_reference_point(model, own.rows, worker)
        learning_rate = _set_learning_rate(optimizers, settings, step, job.steps)
        loss, metrics = accumulate(model, objective, rows, total, worker, reduce_once=settings.reduce_once)
        lora.keep_other_rows(unwrapped_model)
        norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)))
        # Summed too, so that all workers query for notices at the same step.
        loss, metrics = sum_over_workers(loss, {**metrics, "since": time.monotonic() - queried_at}, worker)
        since = metrics.pop("since") / world_size
        if AUXILIARY_LOSS in metrics:
            metrics[AUXILIARY_LOSS] /= max(1, total)
        finite = math.isfinite(loss) and math.isfinite(norm)
        skipped = 0 if finite else skipped + 1
        if skipped > settings.skip_nonfinite_steps:
            found = f"the loss is {loss} and the gradient norm {norm} at step {step}"
            before = f", and so {skipped - 1} steps before it were" if skipped > 1 else ""
            raise NotFiniteError(f"{found}{before}: lower the learning rate ({settings.learning_rate})")
        for optimizer in optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        last = step + 1 == job.steps
        values: dict[str, Any] = {"learning_rate": learning_rate}
        if step == start and earlier:
            values |= {"lost_steps": len(earlier) - start, "recovery_seconds": time.time() - earlier[-1]["time"]}
        if step == 0:
            values |= {f"{name}_before": value for name, value in untrained.items()}
        if writer and throughput:
            throughput.add(counted, finite, waited)
            values |= {"loss": loss, "gradient_norm": norm, **metrics} if finite else {"skipped": 1}
            values |= {objective.unit: total if finite else 0, **throughput.metrics(objective.unit)}
        due = last or (step + 1) % settings.checkpoint_every == 0
        exported = last
        if due:
            watchdog.begin(f"the held-out loss after step {step}")
            values |= held_out.measure(job, model, tokenizer, worker, compiled)
            if settings.keep == "best":
                exported = held_out_loss(values) < lowest
                lowest = min(lowest, held_out_loss(values))
                if last and lowest == math.inf:
                    raise NotFiniteError("the held-out loss was never finite: there is no best model to keep")
        if exported:
            watchdog.begin(f"the export of the model after step {step}")
            export(model, unwrapped_model, tokenizer, job.out, rank, settings.export_precision)
            note_export(model, proven, job.out, worker)
        if last:
            values["export_difference"] = prove_export(objective, proven, job.out, worker, settings.export_precision)
        if writer:
            writer.write(step, **values)
        notice = last_notice
        if since > NOTICE_SECONDS:
            notice, queried_at = ray.train.get_preemption_info(), time.monotonic()
        if due or notice != last_notice:
            watchdog.begin(f"the checkpoint after step {step}")
            checkpoints.save(training_state(model, optimizers), step + 1)
        last_notice = notice


def _compiling_pays(job: TrainingJob, unwrapped_model: Any, device: torch.device) -> bool:
    first = next(parquet.ParquetFile(job.shards[0].path).iter_batches(1, columns=["input_ids"]))
    length = len(first["input_ids"][0])
    return compiling_pays(unwrapped_model, job.steps * job.settings.batch_rows * length, length, device)


def _restore(checkpoints: Checkpoints, model: WithLoss, optimizers: list[Optimizer]) -> int:
    """Loads the newest checkpoint that can be read, of any number of workers; returns the next step to do."""
    if checkpoints.newest() is None:
        return 0
    state = training_state(model, optimizers)
    step = checkpoints.read_newest(state)
    load_training_state(model, optimizers, state)
    return step or 0


class Throughput:
    """Measures rates from the first step of the first worker on, and compares them with the machine's peak."""

    def __init__(self, model: Any, worker: DataParallelRank) -> None:
        self.model, self.world_size, self.device = model, worker.world_size, worker.device
        self.peak = peak_flops(worker.device, worker.precision)
        self.start = time.monotonic()
        self.units, self.flops, self.waited = 0, 0.0, 0.0

    def add(self, batch: "_Counted", trained: bool, waited: float) -> None:
        """Counts a global batch that was waited for `waited` seconds, and its units where they were trained on."""
        self.units += batch.units if trained else 0
        self.flops += batch.positions * flops_per_token(self.model, batch.length)
        self.waited += waited

    def metrics(self, unit: str) -> dict[str, float]:
        """Returns units a second; model FLOPs utilization, which counts padding and checkpoints; the share of time
        spent waiting for data; and the peak memory in 1e9 bytes."""
        seconds = time.monotonic() - self.start
        return {
            f"{unit}_per_second": self.units / seconds,
            "mfu": self.flops / seconds / (self.peak * self.world_size),
            "data_wait_share": self.waited / seconds,
            "peak_memory_gb": peak_memory_gb(self.device),
        }


@dataclass(frozen=True)
class _Counted:
    """The counts of a global batch over all workers.

    Attributes:
        units: the units, such as tokens, that its loss is averaged over.
        positions: its tokens, padding included.
        length: the tokens of a row of this worker's.
    """

    units: int
    positions: int
    length: int


def _counted(objective: Any, rows: OwnRows, vocabulary: int, step: int, worker: DataParallelRank) -> _Counted:
    """Checks this worker's rows of a step, and counts those of all.

    Raises:
        UserError: a worker's row has a token that the model has no embedding for. All workers raise it: none is left
            waiting for the others.
    """
    wrong, units, positions, length = "", 0, 0, 0
    try:
        check_ids(rows.rows, vocabulary, f"a row of step {step}")
    except UserError as error:
        wrong = str(error)
    else:
        batch = objective.collate(rows.rows)
        length = batch.input_ids.shape[1]
        if rows.own:
            units, positions = objective.count(batch), batch.input_ids.numel()
    summed, found = sum_over_workers(units, {"positions": positions, "wrong": bool(wrong)}, worker)
    if found["wrong"]:
        messages: list[str] = [wrong] * worker.world_size
        if worker.world_size > 1:
            dist.all_gather_object(messages, wrong)
        raise UserError(next(filter(None, messages)))
    return _Counted(int(summed), int(found["positions"]), length)


def _own_rows(
    job: TrainingJob, start: int, watchdog: Watchdog, worker: DataParallelRank
) -> Iterator[tuple[int, OwnRows, float]]:
    """Yields each step from `start` on, a worker's rows of it, and the seconds that they were waited for."""
    size = job.settings.batch_rows
    batches = row_batches(job.shards, job.settings.epochs, job.seed, start * size, size, worker.rank, worker.world_size)
    for step in range(start, job.steps):
        begin = time.monotonic()
        watchdog.begin(f"the rows of step {step}")
        rows = next(batches)
        watchdog.begin(f"step {step} of training")
        yield step, rows, time.monotonic() - begin


def _set_learning_rate(optimizers: list[Optimizer], settings: Training, step: int, steps: int) -> float:
    factor = learning_rate_factor(
        step, steps, settings.warmup_share, settings.decay_share, settings.schedule, settings.min_rate_share
    )
    rate = settings.learning_rate * factor
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    return rate
