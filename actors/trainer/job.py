"""A training job as its workers are given it, and the worker of a job that needs one alone. The driver imports both, so
nothing here is slow to import."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.trainer.data import Shard
from cluster.recipe.training import Training
from cluster.run.folder import SCRATCH

# In the scratch folder: the error that ended training, where a retry would meet the same again.
FAILURE = "failure.json"
# In a checkpoint: the next step to do. It is written last.
STEP = "step.json"

Make = Callable[[], tuple[Any, Any, Any]]


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs.

    Attributes:
        make: builds the model, its objective and the tokenizer it is saved with; the same on every worker.
        shards: shards that are trained on.
        held_out: shards that are never trained on.
        out: the folder of `metrics.jsonl` and, at the end, of the model. All workers see it.
        seed: decides the order of the rows.
        threads: PyTorch threads of a worker.
        deadline: seconds that a worker waits for a step, for its rows or for the model, before it gives up.
        held_out_bytes: UTF-8 bytes of the held-out text, where the loss per byte is wanted too.
        samples: the number of held-out texts that a language model continues at each checkpoint.
        sample_tokens: the most tokens of such a continuation.
    """

    settings: Training
    make: Make
    shards: list[Shard]
    held_out: list[Shard]
    out: Path
    seed: int
    threads: int
    deadline: float
    held_out_bytes: int | None = None
    samples: int = 0
    sample_tokens: int = 32

    @property
    def steps(self) -> int:
        """The number of optimizer steps of the whole job; the last one may have fewer rows."""
        rows = sum(shard.rows for shard in self.shards)
        return math.ceil(rows * self.settings.epochs / self.settings.batch_rows)


class LoneWorker:
    """An actor that trains alone on CPUs, in Ray Train's local mode, in place of Ray Train's own processes.

    Beside a worker, Ray Train keeps five processes, each of which polls for signals a hundred times a second. Where
    training has all cores every poll interrupts it: on two cores steps took 10 % less while the five were stopped.
    """

    def ready(self) -> None:
        """Returns once the actor has started."""

    def train(self, job: TrainingJob) -> None:
        """Trains to the end, or until an error is written down."""
        # The driver imports this module, and needs no PyTorch.
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        from actors.trainer import loop

        TorchTrainer(lambda: loop.train(job), scaling_config=ScalingConfig(num_workers=0)).fit()


def held_out_loss(row: Mapping[str, Any]) -> float:
    """Returns the held-out loss in a step's metrics, or infinity where none was measured or it is not finite."""
    loss = row.get("held_out_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def checkpoints_in(out: Path) -> list[tuple[int, Path]]:
    """Returns the whole checkpoints of a folder, each with the next step to do, the newest last."""
    return sorted((json.loads(path.read_text()), path.parent) for path in (out / SCRATCH).glob(f"checkpoint_*/{STEP}"))
