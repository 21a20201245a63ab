"""Rewards of answers, each from actors of its own, and their weighted sum."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import ray

from actors.compat import started
from actors.types import Prompt, RewardInput, Sample
from cluster.errors import wait_for
from cluster.runtime.plan import Allocation

Scores = list[list[float]]


def restarted(kind: type, share: Allocation, restarts: int) -> Any:
    """The class of a reward as that of a Ray actor, which is started again when it is killed, and asked again.

    Rewards have no state. One that dies more often than `restarts` in all has a fault of its own.
    """
    return ray.remote(kind).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}},
        max_restarts=restarts,
        max_task_retries=restarts,
    )


class RewardWorkerPool:
    """One reward among several: actors that give it and share what is asked.

    Args:
        name: for messages.
        launch: makes an actor: a handle of a `ModelReward`, `FunctionReward` or `HttpReward`.
        weight: in the sum.
        seconds: most time for answers that are asked for together.
        questions: by the prompts' ids, for actors that are to see them. They go with what is asked: as an argument of
            an actor that may be started again, many would have to stay in Ray's object store.
        actors: how many to start with.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Any],
        weight: float,
        seconds: float,
        questions: Mapping[str, RewardInput] | None = None,
        actors: int = 1,
    ) -> None:
        self.name, self.weight, self.seconds = name, weight, seconds
        self._launch, self._questions = launch, questions
        self._actors: list[Any] = []
        self._starting: dict[ray.ObjectRef, Any] = {}
        self.resize(actors)

    @property
    def size(self) -> int:
        """How many actors there are, those that start included."""
        return len(self._actors) + len(self._starting)

    @property
    def settled(self) -> bool:
        """Whether all actors have started."""
        self._join()
        return not self._starting

    def wait_ready(self, deadline: float) -> None:
        """Until all actors have started. Raises as `wait_for`."""
        wait_for(list(self._starting), deadline, f"the actors of {self.name} to start")
        self._join()

    def resize(self, actors: int) -> None:
        """Changes the number of actors: new ones are asked once they have started, and others end when they have
        answered what they were asked, as Ray has an actor do that nobody has a handle of."""
        self._join()
        while self.size < actors:
            actor = self._launch()
            self._starting[started(actor)] = actor
        while self.size > actors:
            if self._starting:
                self._starting.popitem()
            else:
                self._actors.pop()

    def ask(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> list[ray.ObjectRef]:
        """The references of the rewards to come: of the first prompts, of those after them, and so on."""
        self._join()
        # Before any has started, all of them: calls wait in an actor that starts.
        actors = self._actors or list(self._starting.values())
        bounds = [len(prompts) * number // len(actors) for number in range(len(actors) + 1)]
        return [
            self._ask_one(actor, prompts[begin:end], groups[begin:end])
            for actor, (begin, end) in zip(actors, pairwise(bounds), strict=True)
            if begin < end
        ]

    def close(self) -> None:
        """Ends the actors, whatever they are at."""
        for actor in [*self._actors, *self._starting.values()]:
            ray.kill(actor)
        self.resize(0)

    def _join(self) -> None:
        if self._starting:
            done, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
            self._actors += [self._starting.pop(ref) for ref in done]

    def _ask_one(self, actor: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> ray.ObjectRef:
        if self._questions is None:
            return actor.score.remote(prompts, groups)
        return actor.score.remote(prompts, groups, [self._questions[prompt.id] for prompt in prompts])


class WeightedRewards:
    """The weighted sum of what all scorers give, who are asked at once."""

    def __init__(
        self, scorers: Sequence[RewardWorkerPool], prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]
    ) -> None:
        self._asked = [(scorer, scorer.ask(prompts, groups)) for scorer in scorers]
        self._total = [[0.0] * len(group) for group in groups]

    def there(self) -> bool:
        """Whether all scorers have answered."""
        refs = [ref for _, answers in self._asked for ref in answers]
        return not refs or len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def wait(self) -> Scores:
        """Of the samples of each prompt.

        Raises:
            DeadlineError: a scorer was not done in its time, which begins when it is waited for.
            EngineError: one was killed more often than it is started again.
            StageError: one failed.
        """
        while self._asked:
            scorer, answers = self._asked[0]
            scores = chain(*wait_for(answers, scorer.seconds, f"the rewards of {scorer.name}"))
            self._total = [
                [old + scorer.weight * new for old, new in zip(*rows, strict=True)]
                for rows in zip(self._total, scores, strict=True)
            ]
            del self._asked[0]
        return self._total
