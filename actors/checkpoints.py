"""What a training worker keeps: its state for a resume, and the model it leaves behind."""

import json
import tempfile
from pathlib import Path
from typing import Any

import ray.train
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
from cluster.failures import UserError
from cluster.run import SCRATCH


def save(model: WithLoss, steppers: list[Optimizer], step: int, out: Path, rank: int) -> None:
    """Reports a checkpoint to Ray Train, which keeps it in `out`. `step` is the next one to do."""
    # Below Ray Train's own folder, which goes when the stage is done, with what a kill leaves in it.
    (out / SCRATCH).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out / SCRATCH) as folder:
        write(model, steppers, folder)
        if rank == 0:
            (Path(folder) / "step.json").write_text(json.dumps(step))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(model: WithLoss, steppers: list[Optimizer]) -> int:
    """Loads the newest checkpoint that Ray Train knows, of any number of workers; returns the next step to do."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        read(model, steppers, folder)
        return int(json.loads((Path(folder) / "step.json").read_text()))


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
            f"the checkpoint in {folder} is damaged or of a model of another shape; remove it to train from the start"
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
