"""Hands a training job to Ray Train workers and waits for it: the driver's side of `actors.trainer`."""

import json
from pathlib import Path
from typing import Any, NoReturn

import ray.data
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.stream import Shard, row_stream
from actors.trainer import FAILURE, TrainingJob, train
from cluster.failures import StageError, UserError
from cluster.metrics import read_metrics
from cluster.plan import Plan
from cluster.progress import metrics_progress
from cluster.run import SCRATCH

RETRIES = 3


def fit(
    job: TrainingJob, shards: list[Shard], seed: int, plan: Plan, title: str, deadline: float
) -> list[dict[str, Any]]:
    """Trains, resuming from what an interrupted attempt left in `job.out`.

    Args:
        deadline: seconds that the data may make no progress.

    Returns:
        The metrics of every step.

    Raises:
        UserError: the rows do not fit the model.
        StageError: the loss is not finite.
    """

    def stream() -> ray.data.Dataset:
        # Called at every start of the workers; those drop rows that come before their checkpoint.
        start = _resumable_step(job.out / SCRATCH) * job.settings.batch_rows
        rows = row_stream(shards, job.settings.epochs, seed, start)
        # Tasks that find no free CPU would wait in silence.
        rows.context.execution_no_progress_timeout_s = deadline
        return rows

    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.settings.workers,
            use_gpu=plan.trainer.gpus > 0,
            resources_per_worker={"CPU": plan.trainer.cpus, "GPU": plan.trainer.gpus},
        ),
        run_config=RunConfig(
            name=SCRATCH,
            storage_path=str(job.out),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
        datasets={"train": stream},
        # Not split: every worker reads the stream and takes its own rows of each batch. Token ids are small.
        dataset_config=DataConfig(datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)),
    )
    failure = job.out / SCRATCH / FAILURE
    failure.unlink(missing_ok=True)
    with metrics_progress(job.out, job.steps, title):
        trainer.fit()
    if failure.exists():
        _raise(json.loads(failure.read_text()))
    return read_metrics(job.out)


def speed(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a stage's manifest says of how its steps went: figures of speed, and steps that were left out."""
    names = ("tokens_per_second", "mfu", "data_wait_share")
    skipped = sum(row.get("skipped", 0) for row in rows)
    return {**{name: rows[-1][name] for name in names}, **({"skipped_steps": skipped} if skipped else {})}


def _raise(failure: dict[str, str]) -> NoReturn:
    kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, StageError)}
    raise kinds.get(failure["kind"], StageError)(failure["message"])


def _resumable_step(storage: Path) -> int:
    """A step that training certainly goes on from or after. The newest checkpoint may lie there and, when everything
    was killed just then, not be on Ray Train's books: the one before it is."""
    steps = sorted(_step_in(path) for path in storage.glob("checkpoint_*/step.json"))
    return steps[-2] if len(steps) > 1 else 0


def _step_in(path: Path) -> int:
    """The step of a checkpoint; 0 where a kill left half a file."""
    try:
        return int(json.loads(path.read_text()))
    except ValueError:
        return 0
