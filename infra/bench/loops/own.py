"""The project's training loop without a stage around it, and a clock for the trainers that it is compared with."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch
from transformers import LlamaForCausalLM, TrainerCallback

from actors.model.microbatch import DataParallelRank, accumulate
from actors.model.optim import adamw
from actors.model.perf import native_precision
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective

RATE, DECAY, NORM = 1e-3, 0.1, 1.0
# Settings of transformers' Trainer and of the trainers derived from it: nothing but training.
BARE: dict[str, Any] = {
    "optim": "adamw_torch_fused",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


def own_step(
    model: LlamaForCausalLM, objective: LanguageObjective, micro_rows: int, device: torch.device
) -> Callable[[pa.Table], None]:
    """Takes one step on a global batch, in micro-batches of so many rows."""
    both, stepper = WithLoss(model, objective).train(), adamw(list(model.parameters()), RATE, DECAY)
    part = DataParallelRank(0, 1, micro_rows, native_precision(device), device)

    def step(batch: pa.Table) -> None:
        accumulate(both, objective, batch, objective.count(objective.collate(batch)), part)
        torch.nn.utils.clip_grad_norm_(both.parameters(), NORM)
        stepper.step()
        stepper.zero_grad(set_to_none=True)

    return step


class StepClock(TrainerCallback):
    """Records when each step of transformers' Trainer ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Records the time."""
        self.ends.append(time.perf_counter())
