"""What a training worker keeps: its state for a resume, and the model it leaves behind."""

import shutil
from pathlib import Path
from typing import Any

import ray.train.collective
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from actors.model import language
from actors.model.sharding import WithLoss
from actors.training_job import STEP, checkpoints_in
from cluster.failures import UserError
from cluster.run import SCRATCH, write_json

# The newest, and the one before it should the newest turn out to be damaged.
KEPT = 2


def save(model: WithLoss, steppers: list[Optimizer], step: int, out: Path, rank: int) -> None:
    """Keeps a checkpoint in the scratch folder of `out`, which all workers see. `step` is the next one to do."""
    side = out / SCRATCH / f"side_{step}"
    write(model, steppers, side)
    if rank == 0:
        write_json(side / STEP, step)
        side.rename(out / SCRATCH / f"checkpoint_{step}")
        for _, old in checkpoints_in(out)[:-KEPT]:
            shutil.rmtree(old)


def restore(model: WithLoss, steppers: list[Optimizer], out: Path, rank: int) -> int:
    """Loads the newest checkpoint, of any number of workers, if there is one; returns the next step to do."""
    newest = None
    if rank == 0:
        # What a kill left, in which a checkpoint of fewer workers would leave parts.
        for half in (out / SCRATCH).glob("side_*"):
            shutil.rmtree(half)
        newest = max(checkpoints_in(out), default=None)
    # The others may not see the same yet on a file system of another machine, and wait until the rest is gone.
    newest = ray.train.collective.broadcast_from_rank_zero(newest)
    if newest is None:
        return 0
    step, folder = newest
    read(model, steppers, folder)
    return step


def write(model: WithLoss, steppers: list[Optimizer], folder: str | Path) -> None:
    """Writes the weights and the state of their optimisers, each worker its part. Weights that do not change are left
    out."""
    weights, state = _state(model, steppers)
    dcp.save({"model": weights, "optimiser": state}, checkpoint_id=folder)


def read(model: WithLoss, steppers: list[Optimizer], folder: str | Path) -> None:
    """Takes over what `write` wrote, on any number of workers.

    Raises:
        UserError: it is damaged, or of a model of another shape.
    """
    weights, state = _state(model, steppers)
    try:
        dcp.load({"model": weights, "optimiser": state}, checkpoint_id=folder)
    except CheckpointException as error:
        raise UserError(
            f"the checkpoint in {folder} is damaged or of a model of another shape; remove it to go on from the one "
            "before it, or from the start"
        ) from error
    # Without the frozen weights, the dictionary is not the whole model's.
    options = StateDictOptions(strict=not _frozen(model))
    set_state_dict(model, steppers, model_state_dict=weights, optim_state_dict=state, options=options)


def export(model: WithLoss, plain: Any, tokenizer: Any, out: Path, rank: int) -> None:
    """As `language.save`, of a model that is spread over the workers."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = {
        name.removeprefix("model."): value for name, value in get_model_state_dict(model, options=options).items()
    }
    if rank == 0:
        language.save(plain, tokenizer, out, weights)


def _state(model: WithLoss, steppers: list[Optimizer]) -> tuple[dict[str, Any], dict[str, Any]]:
    weights, state = get_state_dict(model, steppers)
    if _frozen(model):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        weights = {name: value for name, value in weights.items() if name in trained}
    return weights, state


def _frozen(model: WithLoss) -> bool:
    return not all(parameter.requires_grad for parameter in model.parameters())
