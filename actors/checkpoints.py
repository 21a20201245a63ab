"""What a training worker keeps: its state for a resume, and the model it leaves behind."""

import json
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from actors.model.sharding import WithLoss
from cluster.run import SCRATCH


def save(model: WithLoss, steppers: list[Optimizer], step: int, out: Path, rank: int) -> None:
    """Reports a checkpoint to Ray Train, which keeps it in `out`. `step` is the next one to do."""
    weights, state = get_state_dict(model, steppers)
    # Below Ray Train's own folder, which goes when the stage is done, with what a kill leaves in it.
    (out / SCRATCH).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out / SCRATCH) as folder:
        dcp.save({"model": weights, "optimiser": state}, checkpoint_id=folder)
        if rank == 0:
            (Path(folder) / "step.json").write_text(json.dumps(step))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(model: WithLoss, steppers: list[Optimizer]) -> int:
    """Loads the newest checkpoint that Ray Train knows, of any number of workers; returns the next step to do."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        weights, state = get_state_dict(model, steppers)
        dcp.load({"model": weights, "optimiser": state}, checkpoint_id=folder)
        set_state_dict(model, steppers, model_state_dict=weights, optim_state_dict=state)
        return int(json.loads((Path(folder) / "step.json").read_text()))


def export(model: WithLoss, plain: Any, tokenizer: Any, out: Path, rank: int) -> None:
    """Writes the model as a Hugging Face directory."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = {
        name.removeprefix("model."): value for name, value in get_model_state_dict(model, options=options).items()
    }
    if rank == 0:
        plain.save_pretrained(out, state_dict=weights)
        tokenizer.save_pretrained(out)
