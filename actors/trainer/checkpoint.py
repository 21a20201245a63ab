"""What a training worker keeps: its state for a resume, and the model it leaves behind."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import ray.train.collective
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from actors.model import causal_lm
from actors.model.fsdp import WithLoss
from actors.trainer.job import STEP, checkpoints_in
from cluster.errors import StageError, UserError, first_line
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH

# The newest, and the one before it should the newest turn out to be damaged.
KEPT = 2


class Checkpoints:
    """Those of a training job, in the scratch folder of `out`, which all workers see. A context manager: what was saved
    is in place when it is left, whatever ended training.

    Args:
        out: the job's folder.
        rank: this worker's number.
        workers: how many there are.
        asynchronous: training goes on while a checkpoint is written, from a copy of the state in the CPU's memory.
    """

    def __init__(self, out: Path, rank: int, workers: int, asynchronous: bool) -> None:
        self.out, self.rank, self.workers = out, rank, workers
        self.asynchronous = asynchronous
        # Written meanwhile, it must not come between the collective operations of training.
        self._group = dist.new_group(backend="gloo") if asynchronous and workers > 1 else None
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()

    def save(self, model: WithLoss, optimizers: list[Optimizer], step: int) -> None:
        """Keeps the state; `step` is the next one to do. The checkpoint before is in place when this returns.

        Raises:
            StageError: this checkpoint, or the one before if they are asynchronous, could not be written.
        """
        self.wait()
        side = self.out / SCRATCH / f"side_{step}"
        if not self.asynchronous:
            write(model, optimizers, side)
            self._place(side, step)
            return
        alone = self.workers == 1
        written = dcp.async_save(
            _state(model, optimizers), checkpoint_id=side, process_group=self._group, no_dist=alone
        )
        self._pending = self._writer.submit(self._finish, cast("Future[Any]", written), side, step)

    def wait(self) -> None:
        """Returns when what was saved is in place."""
        if self._pending:
            self._pending.result()
        self._pending = None

    def restore(self, model: WithLoss, optimizers: list[Optimizer]) -> int:
        """Loads the newest checkpoint, of any number of workers, if there is one; returns the next step to do."""
        newest = None
        if self.rank == 0:
            # What a kill left, in which a checkpoint of fewer workers would leave parts.
            for half in (self.out / SCRATCH).glob("side_*"):
                shutil.rmtree(half)
            newest = max(checkpoints_in(self.out), default=None)
        # The others wait until the rest is gone; on a file system of another machine they may not see the same yet.
        newest = ray.train.collective.broadcast_from_rank_zero(newest)
        if newest is None:
            return 0
        step, folder = newest
        read(model, optimizers, folder)
        return step

    def _finish(self, written: Future[Any], side: Path, step: int) -> None:
        try:
            written.result()
        except CheckpointException as error:
            raise _unwritten(error, side) from error
        self._place(side, step)

    def _place(self, side: Path, step: int) -> None:
        if self.rank == 0:
            write_json(side / STEP, step)
            side.rename(self.out / SCRATCH / f"checkpoint_{step}")
            for old_step, old in checkpoints_in(self.out)[:-KEPT]:
                # Under its own name, what a kill leaves of it would be in the way of another checkpoint of that step.
                shutil.rmtree(old.rename(self.out / SCRATCH / f"side_old_{old_step}"))


def write(model: WithLoss, optimizers: list[Optimizer], folder: str | Path) -> None:
    """Writes the weights and the state of their optimizers, each worker its part. Weights that do not change are left
    out.

    Raises:
        StageError: they cannot be written.
    """
    try:
        dcp.save(_state(model, optimizers), checkpoint_id=folder)
    except CheckpointException as error:
        raise _unwritten(error, Path(folder)) from error


def read(model: WithLoss, optimizers: list[Optimizer], folder: str | Path) -> None:
    """Takes over what `write` wrote, on any number of workers.

    Raises:
        UserError: it is damaged, or of a model of another shape.
    """
    state = _state(model, optimizers)
    try:
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:
        raise UserError(
            f"the checkpoint in {folder} is damaged or of a model of another shape; remove it to go on from the one "
            "before it, or from the start"
        ) from error
    # Without the frozen weights, the dictionary is not the whole model's.
    options = StateDictOptions(strict=not _frozen(model))
    set_state_dict(
        model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )


def export(model: WithLoss, unwrapped_model: Any, tokenizer: Any, out: Path, rank: int) -> None:
    """As `language.save`, of a model that is spread over the workers."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = {
        name.removeprefix("model."): value for name, value in get_model_state_dict(model, options=options).items()
    }
    if rank == 0:
        causal_lm.save(unwrapped_model, tokenizer, out, weights)


def _unwritten(error: CheckpointException, folder: Path) -> StageError:
    """PyTorch says of a full disk that its file is at another position than it should be."""
    failure, _ = next(iter(error.failures.values()))
    free = shutil.disk_usage(folder.parent).free / 1e9
    return StageError(
        f"cannot write the checkpoint {folder}: {first_line(failure)}; {free:.2f} GB are free there: free some if it "
        "needs more, and the same command goes on"
    )


def _state(model: WithLoss, optimizers: list[Optimizer]) -> dict[str, Any]:
    weights, state = get_state_dict(model, optimizers)
    if _frozen(model):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        weights = {name: value for name, value in weights.items() if name in trained}
    return {"model": weights, "optimizer": state}


def _frozen(model: WithLoss) -> bool:
    return not all(parameter.requires_grad for parameter in model.parameters())
