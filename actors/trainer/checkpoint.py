"""Checkpoints of a training job and of RLHF's learner, and the model that training leaves behind."""

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from actors.model import causal_lm
from actors.model.sharding.export import export_shared
from actors.model.sharding.fsdp import WithLoss
from actors.model.sharding.weights import is_shared
from actors.trainer.job import STEP, checkpoints_in
from cluster.errors import StageError, UserError, first_line
from cluster.recipe.base import Precision
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH

# In a checkpoint: JSON values beside the tensors, where there are any.
EXTRA = "extra.json"

State = dict[str, Any]


class Checkpoints:
    """Numbered checkpoints in the scratch folder of `out`, which all workers see.

    A context manager: on exit every checkpoint that was saved is in place, whatever ended training.

    Args:
        out: the folder of the job or of the learner.
        rank: this worker's number.
        world_size: the number of workers.
        asynchronous: whether training goes on while a checkpoint is written, from a copy of the state in CPU memory.
        kept: how many are kept: the newest, and those before it should the newest turn out to be damaged.
    """

    def __init__(self, out: Path, rank: int, world_size: int, asynchronous: bool, kept: int = 2) -> None:
        self.out, self.rank, self.world_size, self.kept = out, rank, world_size, kept
        self.asynchronous = asynchronous
        # Collective operations of a checkpoint that is written meanwhile must not come between those of training.
        self._group = dist.new_group(backend="gloo") if asynchronous and world_size > 1 else None
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.wait()

    def save(self, state: State, step: int, extra: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint. The one before is in place when this returns.

        Args:
            state: nested dictionaries of tensors, such as `training_state` gives, on every worker its part.
            step: the next step to do.
            extra: JSON values to keep beside the tensors.

        Raises:
            StageError: this checkpoint, or the one before if they are asynchronous, could not be written.
        """
        self.wait()
        side = self.out / SCRATCH / f"side_{step}"
        if not self.asynchronous:
            write(state, side)
            self._put_in_place(side, step, extra)
            return
        alone = self.world_size == 1
        written = dcp.async_save(state, checkpoint_id=side, process_group=self._group, no_dist=alone)
        self._pending = self._writer.submit(self._finish, cast("Future[Any]", written), side, step, extra)

    def wait(self) -> None:
        """Returns once every checkpoint that was saved is in place."""
        if self._pending:
            self._pending.result()
        self._pending = None

    def newest(self) -> tuple[int, Path] | None:
        """Returns the newest of `whole`, if there is one."""
        return next(iter(self.whole()), None)

    def whole(self) -> list[tuple[int, Path]]:
        """Removes half-written checkpoints; returns the whole ones and their next steps to do, the newest first, on
        every worker."""
        found: list[list[tuple[int, Path]]] = [[]]
        if self.rank == 0:
            # Fewer workers than before would overwrite only a part of the half-written files.
            for half in (self.out / SCRATCH).glob("side_*"):
                shutil.rmtree(half)
            found = [checkpoints_in(self.out)[::-1]]
        # The others wait until the rest is gone; on a file system of another machine they may not see the same yet.
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def read_newest(self, state: State) -> int | None:
        """Reads the newest checkpoint that is not damaged into `state`, and removes those that are.

        Returns:
            Its next step to do; None if there is no checkpoint.

        Raises:
            UserError: all are damaged, or of tensors of other names or shapes. None is removed then.
        """
        failures: list[UserError] = []
        found = self.whole()
        for step, folder in found:
            try:
                read(state, folder)
            except UserError as error:
                failures.append(error)
                continue
            for _, damaged in found[: len(failures)] if self.rank == 0 else ():
                print(f"{damaged} is damaged and removed: training goes on from step {step}", flush=True)
                shutil.rmtree(damaged)
            return step
        if failures:
            raise failures[0]
        return None

    def _finish(self, written: Future[Any], side: Path, step: int, extra: dict[str, Any] | None) -> None:
        try:
            written.result()
        except CheckpointException as error:
            raise _write_error(error, side) from error
        self._put_in_place(side, step, extra)

    def _put_in_place(self, side: Path, step: int, extra: dict[str, Any] | None) -> None:
        if self.rank == 0:
            if extra is not None:
                write_json(side / EXTRA, extra)
            write_json(side / STEP, step)
            side.rename(self.out / SCRATCH / f"checkpoint_{step}")
            for old_step, old in checkpoints_in(self.out)[: -self.kept]:
                # Renamed first: a kill during the removal would leave a damaged folder under a checkpoint's name.
                shutil.rmtree(old.rename(self.out / SCRATCH / f"side_old_{old_step}"))


def training_state(model: nn.Module, optimizers: list[Optimizer]) -> State:
    """Returns the weights that are trained and the state of their optimizers. Frozen weights are left out."""
    weights, optimizer = get_state_dict(model, optimizers)
    if _has_frozen(model):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        weights = {name: value for name, value in weights.items() if name in trained}
    return {"model": weights, "optimizer": optimizer}


def load_training_state(model: nn.Module, optimizers: list[Optimizer], state: State) -> None:
    """Sets weights and optimizers to a state that `training_state` returned."""
    # Without the frozen weights, the dictionary is not the whole model's.
    options = StateDictOptions(strict=not _has_frozen(model))
    set_state_dict(
        model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )


def write(state: State, folder: Path) -> None:
    """Writes tensors, each worker its part.

    Raises:
        StageError: they cannot be written.
    """
    try:
        dcp.save(state, checkpoint_id=folder)
    except CheckpointException as error:
        raise _write_error(error, folder) from error


def read(state: State, folder: Path) -> None:
    """Replaces the tensors of `state` by those that `write` wrote, from any number of workers.

    Raises:
        UserError: the checkpoint is damaged, or of tensors of other names or shapes.
    """
    try:
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:
        raise UserError(
            f"the checkpoint in {folder} is damaged or of a model of another shape; remove it to go on from the one "
            "before it, or from the start"
        ) from error


def read_extra(folder: Path) -> dict[str, Any]:
    """Returns the JSON values of a checkpoint that was saved with some."""
    extra: dict[str, Any] = json.loads((folder / EXTRA).read_text(encoding="utf-8"))
    return extra


def export(
    model: WithLoss, unwrapped_model: Any, tokenizer: Any, out: Path, rank: int, precision: Precision = "float32"
) -> None:
    """Writes a model, which may be sharded over the workers, as `causal_lm.save` writes it."""
    if is_shared():
        export_shared(unwrapped_model, tokenizer, out, rank, precision)
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = {
        name.removeprefix("model."): value for name, value in get_model_state_dict(model, options=options).items()
    }
    causal_lm.save(unwrapped_model, tokenizer, out, weights, precision)


def _write_error(error: CheckpointException, folder: Path) -> StageError:
    """Makes an error that states the free space: of a full disk PyTorch says only that a file's position is wrong."""
    failure, _ = next(iter(error.failures.values()))
    free = shutil.disk_usage(folder.parent).free / 1e9
    return StageError(
        f"cannot write the checkpoint {folder}: {first_line(failure)}; {free:.2f} GB are free there: free some if it "
        "needs more, and the same command goes on"
    )


def _has_frozen(model: nn.Module) -> bool:
    return not all(parameter.requires_grad for parameter in model.parameters())
