"""The learner in Ray actors of its own, one or several; every call has a deadline."""

import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from actors.learner.learner import Learner
from actors.rollout.weights import Weights, pack, publish, unpack
from actors.types import Prompt, Sample
from cluster.errors import EngineError, known_failure, wait_for
from cluster.runtime.network import use_node_interface
from cluster.runtime.plan import Allocation
from cluster.runtime.session import TRAINING_ENVIRONMENT

# A worker finds the connection to one that died cut at once; Ray notices the death a little later.
DEATH_SECONDS = 10.0


class LearnerLostError(EngineError):
    """The death of the learner or of one of its workers. What it learned since its last checkpoint is lost."""


class LearnerActor:
    """One worker of the learner: a `Learner` that computes its part of a joint computation."""

    def __init__(self, rank: int, workers: int) -> None:
        self._rank, self._workers = rank, workers
        self._learner: Any = None

    def address(self) -> str:
        """Returns an address at which the workers form a process group: a free port of this worker's node."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def start(self, address: str | None, deadline: float, *arguments: Any) -> None:
        """Makes the `Learner` with these arguments; several workers first form a process group at the address."""
        if address is not None:
            use_node_interface()
            dist.init_process_group(
                "nccl" if torch.cuda.is_available() else "gloo",
                init_method=f"tcp://{address}",
                rank=self._rank,
                world_size=self._workers,
                timeout=timedelta(seconds=deadline),
            )
        self._learner = Learner(*arguments)

    def weights(self) -> dict[str, Any]:
        """Returns the `Learner`'s weights packed by `weights.pack`; of several workers only the first has any."""
        return pack(self._learner.weights())

    def publish(self, version: int, dtype: torch.dtype) -> Weights | None:
        """Puts the `Learner`'s weights into the object store, from the first worker.

        Engines fetch them from this node at once; by way of the driver they would be copied twice.
        """
        weights = self._learner.weights(dtype)
        return publish(version, weights, dtype) if self._rank == 0 else None

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the `Learner`; of several workers only the first returns its result."""
        found = getattr(self._learner, method)(*arguments)
        return found if self._rank == 0 else None


class RemoteLearner:
    """A client with the methods of `Learner`, each of which waits for its result.

    Args:
        share: resources of each worker.
        workers: the number of workers.
        out: the folder whose scratch folder holds its checkpoints.
        published: the element type that weights are published in.
        deadline: the most seconds for each call.
        arguments: of `Learner`.

    Attributes:
        actors: the handles of the workers.

    Raises:
        DeadlineError: from every method: the learner did not answer in time.
        LearnerLostError: from every method: the learner has died.
    """

    def __init__(
        self,
        share: Allocation,
        workers: int,
        out: Path,
        published: torch.dtype,
        deadline: float,
        *arguments: Any,
    ) -> None:
        env_vars = {"OMP_NUM_THREADS": str(share.threads), **TRAINING_ENVIRONMENT}
        kind: Any = ray.remote(LearnerActor).options(
            num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": env_vars}
        )
        self.actors = [kind.remote(rank, workers) for rank in range(workers)]
        self._out, self._published, self._deadline = out, published, deadline
        # A reference: the driver does not wait for the first actor here.
        address = self.actors[0].address.remote() if workers > 1 else None
        self._started = [actor.start.remote(address, deadline, *arguments) for actor in self.actors]

    def step(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        rewards: Sequence[Sequence[float]],
        measured: Mapping[str, float],
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, float]:
        """Calls `Learner.step`, and meanwhile calls `meanwhile`, if given, again and again."""
        arguments = (prompts, groups, rewards, dict(measured))
        return self._call("step", "the learner's step", *arguments, meanwhile=meanwhile)

    def weights(self) -> dict[str, Tensor]:
        """Returns `Learner.weights`."""
        refs = [actor.weights.options(name="Learner.weights").remote() for actor in self.actors]
        return unpack(self._wait(refs, "the learner's weights")[0], torch.float32)

    def publish(self, version: int) -> Weights:
        """Puts the weights into the object store as this version; they are lost with the learner."""
        calls = [
            actor.publish.options(name="Learner.publish").remote(version, self._published) for actor in self.actors
        ]
        return self._wait(calls, "the learner's weights")[0]

    def logprobs(
        self, sequences: list[list[int]], starts: list[int], temperature: float, fine_tuned: bool = False
    ) -> list[list[float]]:
        """Returns `Learner.logprobs`."""
        return self._call("logprobs", "the learner's log-probabilities", sequences, starts, temperature, fine_tuned)

    def save(self, extra: dict[str, Any]) -> None:
        """Writes a checkpoint (`Learner.save`) into `out`."""
        self._call("save", "the checkpoint", self._out, extra)

    def restore(self) -> dict[str, Any] | None:
        """Loads the newest checkpoint (`Learner.restore`) in `out`."""
        return self._call("restore", "the learner to load", self._out)

    def export(self, folder: Path, within_limits: bool) -> bool:
        """Writes the policy (`Learner.export`)."""
        exists: bool = self._call("export", "the policy to be written", folder, within_limits)
        return exists

    def close(self) -> None:
        """Ends the actors."""
        for actor in self.actors:
            ray.kill(actor)

    def _call(self, method: str, what: str, *arguments: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        started, self._started = self._started, []
        if len(self.actors) > 1:
            # Serialized once, and not once a worker.
            arguments = tuple(ray.put(argument) for argument in arguments)
        # Named after the method, which Ray's dashboard and the processes' titles then show.
        calls = [actor.call.options(name=f"Learner.{method}").remote(method, *arguments) for actor in self.actors]
        return self._wait([*started, *calls], what, meanwhile)[len(started)]

    def _wait(self, refs: list[ray.ObjectRef], what: str, meanwhile: Callable[[], None] | None = None) -> list[Any]:
        try:
            found: list[Any] = wait_for(refs, self._deadline, what, meanwhile)
            return found
        except EngineError as error:
            # The only kind that a call of an actor raises when the actor is dead.
            raise LearnerLostError(str(error)) from error
        except RayTaskError as error:
            if known_failure(error) is None and _one_has_died(refs):
                raise LearnerLostError(
                    f"a worker of the learner died before it gave {what}; the same command goes on from the last "
                    "checkpoint"
                ) from error
            raise


def _one_has_died(refs: list[ray.ObjectRef]) -> bool:
    answered, _ = ray.wait(refs, num_returns=len(refs), timeout=DEATH_SECONDS)
    for ref in answered:
        try:
            ray.get(ref, timeout=DEATH_SECONDS)
        except RayActorError:
            return True
        except RayTaskError:
            continue
    return False
