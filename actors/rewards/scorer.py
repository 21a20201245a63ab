"""Scores sequences by a reward model outside of RLHF, on the device and in the precision that it was trained on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from actors.model.perf import native_precision
from actors.model.reward_head import load_reward_model
from actors.rewards.model import sequence_scores
from cluster.errors import wait_for
from cluster.recipe.base import Precision
from cluster.runtime.plan import Allocation
from cluster.runtime.session import TRAINING_ENVIRONMENT

# Sequences of one call, each of which has the whole deadline.
SEQUENCES_AT_ONCE = 4096

# From folders of reward models and sequences of token ids to the mean score of each sequence, not normalized.
ScoreFunction = Callable[[Sequence[Path], Sequence[list[int]]], list[float]]


class Scorer:
    """Scores sequences in this process, on its GPU if it has one.

    Args:
        precision: of matrix products; None for that in which training computes by itself.
        threads: of PyTorch, on CPUs.
        progress: takes all batches of a call and yields them one by one, as a progress bar does.
    """

    def __init__(self, precision: Precision | None, threads: int, progress: Callable[..., Any] = iter) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = precision or native_precision(self.device)
        self._progress = progress
        self._models: dict[Path, Any] = {}

    def scores(self, folders: Sequence[Path], sequences: Sequence[list[int]]) -> list[float]:
        """Returns the mean score of every sequence by the reward models of these folders, which are loaded once."""
        self._models = {folder: self._models.get(folder) or self._load(folder) for folder in folders}
        models = list(self._models.values())
        return sequence_scores(models, sequences, self.device.type, self.precision, self._progress)

    def _load(self, folder: Path) -> Any:
        return load_reward_model(folder).to(self.device).eval()


@contextmanager
def remote_scorer(share: Allocation, precision: Precision | None, deadline: float) -> Iterator[ScoreFunction]:
    """Yields `Scorer.scores` of an actor with a share of the machine, which ends with the context.

    Raises:
        DeadlineError: from the scores, if an answer takes longer than `deadline` seconds.
    """
    environment = {"OMP_NUM_THREADS": str(share.threads), **TRAINING_ENVIRONMENT}
    kind: Any = ray.remote(Scorer).options(
        num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": environment}
    )
    actor = kind.remote(precision, share.threads)

    def scores(folders: Sequence[Path], sequences: Sequence[list[int]]) -> list[float]:
        found: list[float] = []
        for begin in range(0, len(sequences), SEQUENCES_AT_ONCE):
            part = list(sequences[begin : begin + SEQUENCES_AT_ONCE])
            call = actor.scores.options(name="Scorer.scores").remote(list(folders), part)
            found += wait_for(call, deadline, "scores of the reward model")
        return found

    try:
        yield scores
    finally:
        ray.kill(actor)
