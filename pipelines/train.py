"""The driver's side of training: hands a job to workers that run `actors.trainer.loop`, and waits for them."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from rich.console import Console

from actors.compat import interface_config
from actors.trainer.data import shards_in
from actors.trainer.job import FAILURE, LoneWorker, Make, TrainingJob, checkpoints_in, held_out_loss
from cluster.compat import is_start_timeout
from cluster.errors import DeadlineError, EngineError, StageError, UserError, first_line, known_failure, wait_for
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import Training
from cluster.run.folder import SCRATCH
from cluster.run.metrics import metrics_progress, read_metrics
from cluster.runtime.placement import current_shortage, wait_for_room
from cluster.runtime.plan import Allocation, Plan, make_plan
from cluster.runtime.session import TRAINING_ENVIRONMENT

RETRIES = 3
# The most waits between two lines of metrics: the checkpoint, rows, a step, the loss on held-out rows, and the export;
# at the start, the model and its loss in place of the checkpoint.
WAITS = 6
# How long Ray Train waits for room in one attempt (RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S).
START_SECONDS = 60.0
RESUME = ("lost_steps", "recovery_seconds")


def training_job(
    recipe: Recipe, settings: Training, make: Make, train: Path, held_out: Path, out: Path, **more: int
) -> TrainingJob:
    """Makes a stage's training job from the recipe.

    Args:
        settings: the stage's section of the recipe.
        train: the folder of the shards to train on.
        held_out: the folder of the held-out shards.
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
        deadline=recipe.cluster.deadline_seconds,
        **more,
    )


def fit(job: TrainingJob, plan: Plan, title: str) -> list[dict[str, Any]]:
    """Trains, from the newest checkpoint in `job.out` if there is one.

    Returns:
        The metrics of every step.

    Raises:
        UserError: there are no rows, or they do not fit the model.
        StageError: the loss is not finite, a worker waited longer than its deadline, or the disk is full.
        DeadlineError: the cluster had no room for the workers in time.
    """
    for purpose, shards in (("train on", job.shards), ("hold out", job.held_out)):
        if not shards:
            raise UserError(f"{title}: there is not one row to {purpose}: add sources, or change held_out_share")
    held_out, measured = sum(shard.rows for shard in job.held_out), job.settings.evaluation_rows
    if measured < held_out:
        chosen = f"a random {measured:,} of {held_out:,} held-out rows (evaluation_rows)"
        Console().print(f"{title}: the loss is measured on {chosen}", markup=False, highlight=False)
    failure = job.out / SCRATCH / FAILURE
    failure.unlink(missing_ok=True)
    # The last checkpoint is saved after the model.
    if job.steps not in (step for step, _ in checkpoints_in(job.out)):
        alone = job.settings.workers == 1 and not plan.trainer.gpus
        wanted = {f"worker of {title}": (plan.trainer, job.settings.workers)}
        wait_for_room(wanted, job.deadline)
        with metrics_progress(job.out, job.steps, title, job.settings.trackers) as console:
            if alone:
                _train_alone(job, plan.trainer, console)
            else:
                try:
                    _train_together(job, plan.trainer)
                except TrainingFailedError as error:
                    if not is_start_timeout(error):
                        raise
                    # A node may have gone since there was room.
                    raise DeadlineError(f"waited {job.deadline:.0f} s for room: {current_shortage(wanted)}") from error
    if failure.exists():
        _raise(json.loads(failure.read_text()))
    return read_metrics(job.out)


def _train_together(job: TrainingJob, share: Allocation) -> None:
    """Trains on Ray Train's workers."""

    def train() -> None:
        # Imported by the workers alone: neither the driver nor Ray Train's controller needs PyTorch.
        from actors.trainer import loop

        loop.train(job)

    TorchTrainer(
        train,
        torch_config=interface_config(),
        scaling_config=ScalingConfig(
            num_workers=job.settings.workers,
            use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus, "GPU": share.gpus},
        ),
        run_config=RunConfig(
            name=SCRATCH,
            storage_path=str(job.out),
            # Ray Train waits for room again and again; the limit, of type v2 alone, is that of its deadlines.
            failure_config=FailureConfig(max_failures=RETRIES, **start_limit(job.deadline)),
            # The type is that of Ray Train v1, which has no such field.
            worker_runtime_env={"env_vars": TRAINING_ENVIRONMENT},  # type: ignore[call-arg]
        ),
    ).fit()


def start_limit(seconds: float) -> dict[str, Any]:
    """Returns the field of a FailureConfig that bounds how long Ray Train waits for room, as a number of attempts."""
    return {"controller_failure_limit": max(0, math.ceil(seconds / START_SECONDS) - 1)}


def _train_alone(job: TrainingJob, share: Allocation, console: Console) -> None:
    """Trains on one worker, and starts it again when it dies, as Ray Train does."""
    kind: Any = ray.remote(LoneWorker).options(
        num_cpus=share.cpus, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads), **TRAINING_ENVIRONMENT}}
    )
    for failures in range(1, 2 + RETRIES):
        worker = kind.remote()
        try:
            wait_for(worker.ready.remote(), job.deadline, f"a worker with {share.cpus:g} CPUs to train on")
            wait_for_training(worker, job)
            return
        except (RayError, EngineError) as error:
            if (job.out / SCRATCH / FAILURE).exists():
                return
            known = known_failure(error)
            if known and not isinstance(known, EngineError):
                raise known from error
            if failures > RETRIES:
                died = StageError(f"the training worker died {failures} times: {first_line(error)}")
                raise error if isinstance(error, RayTaskError) else died from error
            why = first_line(error.cause if isinstance(error, RayTaskError) else error)
            console.print(f"the training worker is started again: {why}", markup=False)


def wait_for_training(worker: Any, job: TrainingJob) -> None:
    """Waits until the worker has trained.

    The worker has deadlines of its own, for each of `WAITS`, and Ray notices when its node is gone. Neither helps where
    its whole process stands still, and writes no step for longer than all of them together.

    Raises:
        EngineError: the worker stood still, and was killed.
        RayError: it died, or it raised.
    """
    ended, longest = worker.train.remote(job), WAITS * job.deadline
    # The row itself, which holds its time: steps that are done again add no rows.
    newest = read_metrics(job.out)[-1:]
    while not ray.wait([ended], timeout=longest)[0]:
        before, newest = newest, read_metrics(job.out)[-1:]
        if newest == before:
            ray.kill(worker)
            raise EngineError(f"the training worker finished no step in {longest:g} s")
    ray.get(ended)


def best_checkpoint(rows: list[dict[str, Any]], settings: Training) -> dict[str, Any]:
    """Returns the metrics of the step whose model was kept."""
    if settings.keep == "last":
        return rows[-1]
    return min(rows, key=held_out_loss)


def speed_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarizes the speed, the skipped steps and the resumes of a stage, for its manifest.

    Returns:
        Rates of the last step, how far the loss of the exported model is from the trainer's, and the number of held-out
        rows that were measured; the number of steps that were skipped, if any; and for every resume the steps that were
        done again and the seconds between the last step before and the first after.
    """
    names = (
        "tokens_per_second",
        "mfu",
        "data_wait_share",
        "peak_memory_gb",
        "export_difference",
        "held_out_rows",
    )
    skipped = sum(row.get("skipped", 0) for row in rows)
    resumes = [{name: row[name] for name in RESUME} for row in rows if "lost_steps" in row]
    return {
        **{name: rows[-1][name] for name in names},
        **({"skipped_steps": skipped} if skipped else {}),
        **({"resumes": resumes} if resumes else {}),
    }


def _raise(failure: dict[str, str]) -> NoReturn:
    kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, StageError)}
    raise kinds.get(failure["kind"], StageError)(failure["message"])
