"""The learner in a Ray actor of its own, every call with a deadline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from actors.learner import Learner
from actors.sample import Prompt, Sample
from cluster.failures import wait_for
from cluster.plan import Share


def learner_actor(share: Share) -> Any:
    """The learner's class as that of a Ray actor with that share of the machine."""
    return ray.remote(Learner).options(
        num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}}
    )


class RemoteLearner:
    """The methods of `Learner`, each of which waits for its answer.

    Args:
        actor: the handle of a `Learner`.
        checkpoint: the folder of its checkpoint.
        deadline: the most seconds for each call.

    Raises:
        DeadlineError: from every method: the learner did not answer in time.
        EngineError: from every method: the learner has died.
    """

    def __init__(self, actor: Any, checkpoint: Path, deadline: float) -> None:
        self._actor, self._checkpoint, self._deadline = actor, checkpoint, deadline

    def step(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        rewards: Sequence[Sequence[float]],
        measured: Mapping[str, float],
    ) -> dict[str, float]:
        """As `Learner.step`."""
        return self._wait(self._actor.step.remote(prompts, groups, rewards, measured), "the learner's step")

    def weights(self) -> dict[str, Tensor]:
        """As `Learner.weights`."""
        return self._wait(self._actor.weights.remote(), "the learner's weights")

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool = False
    ) -> list[list[float]]:
        """As `Learner.logprobs`."""
        asked = self._actor.logprobs.remote(sequences, starts, temperature, fine_tuned)
        return self._wait(asked, "the learner's log-probabilities")

    def save(self, extra: dict[str, Any]) -> None:
        """As `Learner.save`, to the checkpoint."""
        self._wait(self._actor.save.remote(self._checkpoint, extra), "the checkpoint")

    def restore(self) -> dict[str, Any] | None:
        """As `Learner.restore`, from the checkpoint."""
        return self._wait(self._actor.restore.remote(self._checkpoint), "the learner to load")

    def export(self, folder: Path, within_limits: bool) -> None:
        """As `Learner.export`."""
        self._wait(self._actor.export.remote(folder, within_limits), "the policy to be written")

    def close(self) -> None:
        """Ends the actor."""
        ray.kill(self._actor)

    def _wait(self, ref: ray.ObjectRef, what: str) -> Any:
        return wait_for(ref, self._deadline, what)
