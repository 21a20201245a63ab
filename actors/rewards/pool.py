"""Runs the Ray actors of each reward, and adds the rewards up by their weights."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import ray

from actors.compat import started
from actors.types import Failure, Prompt, RewardInput, Sample, Scores, Verdict
from cluster.errors import wait_for
from cluster.runtime.plan import Allocation


def restartable(kind: type, allocation: Allocation, restarts: int) -> Any:
    """Returns a reward's class as a Ray actor class whose actors are restarted when they die, and asked again.

    Rewards have no state, so that nothing is lost. An actor that dies more often has a fault of its own.

    Args:
        kind: `ModelReward`, `FunctionReward` or `HttpReward`.
        allocation: the resources of one actor.
        restarts: how often an actor is restarted in all.
    """
    return ray.remote(kind).options(
        num_cpus=allocation.cpus,
        num_gpus=allocation.gpus,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(allocation.threads)}},
        max_restarts=restarts,
        max_task_retries=restarts,
    )


class RewardWorkerPool:
    """The actors of one reward, which share the prompts of a request.

    Args:
        name: the reward, for messages.
        launch: makes an actor: a handle of a `ModelReward`, `FunctionReward` or `HttpReward`.
        weight: of the reward in the sum.
        timeout: the most seconds for one request for so many samples: by then every verdict has been given or has
            failed, so that more are a fault of the actor.
        inputs: what actors see of each prompt, by the prompt's id; None for a reward model, which reads token ids. They
            are sent with requests: as an argument of an actor that may be restarted, many would have to stay in Ray's
            object store.
        actors: the number of actors to start with.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Any],
        weight: float,
        timeout: Callable[[int], float],
        inputs: Mapping[str, RewardInput] | None = None,
        actors: int = 1,
    ) -> None:
        self.name, self.weight, self.timeout = name, weight, timeout
        self._launch, self._inputs = launch, inputs
        self._next = 0
        self._actors: list[Any] = []
        self._starting: dict[ray.ObjectRef, Any] = {}
        self.resize(actors)

    @property
    def size(self) -> int:
        """The number of actors, with those that are starting."""
        return len(self._actors) + len(self._starting)

    @property
    def settled(self) -> bool:
        """Whether all actors have started."""
        self._add_started()
        return not self._starting

    def wait_ready(self, deadline: float) -> None:
        """Waits until all actors have started. Raises as `wait_for` does."""
        wait_for(list(self._starting), deadline, f"the actors of {self.name} to start")
        self._add_started()

    def resize(self, actors: int) -> None:
        """Changes the number of actors and returns.

        New ones get requests once they have started. Others end when they have answered theirs, as Ray ends an actor
        without handles.
        """
        self._add_started()
        while self.size < actors:
            actor = self._launch()
            self._starting[started(actor)] = actor
        while self.size > actors:
            if self._starting:
                self._starting.popitem()
            else:
                self._actors.pop()

    def request(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> list[ray.ObjectRef]:
        """Requests the rewards of each prompt's samples; returns references, each of the next few prompts' `Scores`."""
        self._add_started()
        # Before any has started, all of them: calls wait in an actor that starts. A request of few prompts begins with
        # the actors that the last one left out.
        waiting = self._actors or list(self._starting.values())
        first = self._next % len(waiting)
        actors = [*waiting[first:], *waiting[:first]][: max(1, len(prompts))]
        self._next = first + len(actors)
        bounds = [len(prompts) * number // len(actors) for number in range(len(actors) + 1)]
        return [
            self._request_one(actor, prompts[begin:end], groups[begin:end])
            for actor, (begin, end) in zip(actors, pairwise(bounds), strict=True)
            if begin < end
        ]

    def close(self) -> None:
        """Kills the actors, whatever they are doing."""
        for actor in [*self._actors, *self._starting.values()]:
            ray.kill(actor)
        self.resize(0)

    def _add_started(self) -> None:
        if self._starting:
            done, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            self._actors += [self._starting.pop(ref) for ref in done]

    def _request_one(self, actor: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> ray.ObjectRef:
        if self._inputs is None:
            return actor.score.remote(prompts, groups)
        return actor.score.remote(prompts, groups, [self._inputs[prompt.id] for prompt in prompts])


class WeightedRewards:
    """The weighted sum of all rewards, which are requested at once; of a sample that one fails to judge, the failure.

    Nothing is asked about a sample with which its environment could not go on: its verdict is that failure.

    Args:
        pools: the rewards.
        prompts: P prompts.
        groups: the samples of each.
        environment_weight: the weight of the environment's own reward; None to leave it out.
    """

    def __init__(
        self,
        pools: Sequence[RewardWorkerPool],
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Sample]],
        environment_weight: float | None = None,
    ) -> None:
        self._groups = groups
        whole = [[sample for sample in group if not sample.failure] for group in groups]
        self._requests = [(pool, pool.request(prompts, whole)) for pool in pools]
        self._samples = sum(map(len, groups))
        self._total: Scores = [
            [_own(prompt, sample, environment_weight) for sample in group]
            for prompt, group in zip(prompts, whole, strict=True)
        ]

    def ready(self) -> bool:
        """Returns whether all rewards are there."""
        refs = [ref for _, answers in self._requests for ref in answers]
        return not refs or len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def wait(self) -> Scores:
        """Waits, and returns the summed rewards of each prompt's samples, or the first `Failure` of each.

        Raises:
            DeadlineError: an actor did not answer in its time, which begins when it is waited for.
            EngineError: an actor died more often than it is restarted.
            StageError: a function can no longer be imported.
        """
        while self._requests:
            pool, answers = self._requests[0]
            scores = chain(*wait_for(answers, pool.timeout(self._samples), f"the rewards of {pool.name}"))
            self._total = [
                [add(old, pool.weight, new) for old, new in zip(*rows, strict=True)]
                for rows in zip(self._total, scores, strict=True)
            ]
            del self._requests[0]
        totals = [iter(own) for own in self._total]
        return [
            [Failure(sample.failure) if sample.failure else next(own) for sample in group]
            for group, own in zip(self._groups, totals, strict=True)
        ]


def add(total: Verdict, weight: float, verdict: Verdict) -> Verdict:
    """Adds a weighted verdict; a sum with a failure is that failure, the first if there are several."""
    if isinstance(total, Failure):
        return total
    return verdict if isinstance(verdict, Failure) else total + weight * verdict


def _own(prompt: Prompt, sample: Sample, weight: float | None) -> Verdict:
    """Returns the weighted reward of the sample's environment."""
    if weight is None:
        return 0.0
    if sample.reward is None:
        return Failure(f"the environment gave no reward, for prompt {prompt.name!r}")
    return weight * sample.reward
