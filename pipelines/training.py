"""Hands a training job to Ray Train workers and waits for it: the driver's side of `actors.trainer`."""

import json
from pathlib import Path
from typing import Any, NoReturn

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.stream import shards_in
from actors.training_job import FAILURE, Make, TrainingJob
from cluster.failures import StageError, UserError
from cluster.metrics import read_metrics
from cluster.plan import Plan, make_plan
from cluster.progress import metrics_progress
from cluster.recipe import Recipe, Training
from cluster.run import SCRATCH
from cluster.session import TRAINING_ENVIRONMENT

RETRIES = 3


def training_job(
    recipe: Recipe, settings: Training, make: Make, train: Path, held_out: Path, out: Path, **more: int
) -> TrainingJob:
    """What the jobs of all stages take from the recipe.

    Args:
        settings: the stage's section.
        train: the folder of the shards to train on.
        held_out: the folder of those that are held out.
        more: further fields of the job.

    Raises:
        UserError: there are no shards, or one is damaged.
    """
    return TrainingJob(
        settings=settings,
        make=make,
        shards=shards_in(train),
        held_out=shards_in(held_out),
        out=out,
        seed=recipe.seed,
        threads=make_plan(recipe).trainer.threads,
        **more,
    )


def fit(job: TrainingJob, plan: Plan, title: str) -> list[dict[str, Any]]:
    """Trains, resuming from what an interrupted attempt left in `job.out`.

    Returns:
        The metrics of every step.

    Raises:
        UserError: there are no rows, or they do not fit the model.
        StageError: the loss is not finite.
    """

    for purpose, shards in (("train on", job.shards), ("hold out", job.held_out)):
        if not shards:
            raise UserError(f"{title}: there is not one row to {purpose}: add sources, or change held_out_share")

    def train() -> None:
        # Imported by the workers alone: it takes 13 s of processor time, and neither the driver nor Ray Train's
        # controller, which is given a configuration but not what the function holds, needs any of it.
        from actors import trainer

        trainer.train(job)

    trainer = TorchTrainer(
        train,
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
            # The type is that of Ray Train v1, which has no such field.
            worker_runtime_env={"env_vars": TRAINING_ENVIRONMENT},  # type: ignore[call-arg]
        ),
    )
    failure = job.out / SCRATCH / FAILURE
    failure.unlink(missing_ok=True)
    if not _is_done(job):
        with metrics_progress(job.out, job.steps, title):
            trainer.fit()
    if failure.exists():
        _raise(json.loads(failure.read_text()))
    return read_metrics(job.out)


def _is_done(job: TrainingJob) -> bool:
    """Whether an earlier attempt came to the end: the last checkpoint is saved after the model."""
    return str(job.steps) in (path.read_text() for path in (job.out / SCRATCH).glob("checkpoint_*/step.json"))


def speed(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a stage's manifest says of how its steps went: figures of speed, and steps that were left out."""
    names = ("tokens_per_second", "mfu", "data_wait_share", "peak_memory_gb")
    skipped = sum(row.get("skipped", 0) for row in rows)
    return {**{name: rows[-1][name] for name in names}, **({"skipped_steps": skipped} if skipped else {})}


def _raise(failure: dict[str, str]) -> NoReturn:
    kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, StageError)}
    raise kinds.get(failure["kind"], StageError)(failure["message"])
