"""Keeps the prompts that wait for rollout actors, and the samples that wait to be collected."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from actors.types import Prompt, PromptTurn, Sample, Sampling
from cluster.errors import EngineError

# One death may be the machine's fault and two may be bad luck; the third with the same prompt is the prompt's.
MAX_DEATHS_OF_A_PROMPT = 3


@dataclass(frozen=True)
class GenerateRequest:
    """Prompts that one actor answers in one call.

    Attributes:
        exclusive: whether the actor is to answer no other request meanwhile.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    exclusive: bool = False

    def __str__(self) -> str:
        more = len(self.prompts) - 1
        return f"prompt {self.prompts[0].name}" + (f" and {more} more" if more else "")


class WorkQueue:
    """Queues requests and keeps finished groups of samples. Every prompt that is added is collected once."""

    def __init__(self) -> None:
        self._queue: deque[GenerateRequest] = deque()
        self._open: set[PromptTurn] = set()
        self._deaths: Counter[PromptTurn] = Counter()
        self._finished: dict[PromptTurn, list[Sample]] = {}

    @property
    def outstanding(self) -> int:
        """The number of prompts that were added and are not finished."""
        return len(self._open)

    def add(self, prompts: Sequence[Prompt], sampling: Sampling, size: int) -> None:
        """Queues prompts in requests of at most `size`.

        Raises:
            ValueError: the turn of a prompt is in work, or finished and not yet collected.
        """
        turns = Counter(prompt.turn for prompt in prompts)
        twice = [turn for turn, count in turns.items() if count > 1 or turn in self._open or turn in self._finished]
        if twice:
            raise ValueError(f"prompt {twice[0]} is in work already; its id must be unique")
        self._open.update(turns)
        self._queue.extend(
            GenerateRequest(tuple(prompts[start : start + size]), sampling) for start in range(0, len(prompts), size)
        )

    def take(self, concurrent: bool = False) -> GenerateRequest | None:
        """Removes and returns the next request, or None if there is none.

        Args:
            concurrent: whether the actor that is to have it is answering another; an exclusive request then waits.
        """
        if not self._queue or (concurrent and self._queue[0].exclusive):
            return None
        return self._queue.popleft()

    def finish(self, request: GenerateRequest, groups: Sequence[list[Sample]]) -> None:
        """Keeps the samples of a request, one group for each of its prompts, until they are collected.

        Raises:
            EngineError: a prompt lacks samples, or has those of another; nothing has been kept then.
        """
        for prompt, group in zip(request.prompts, groups, strict=False):
            own = all(sample.id.prompt == prompt.id and sample.id.epoch == prompt.epoch for sample in group)
            if len(group) != request.sampling.count or not own:
                raise EngineError(
                    f"an engine answered prompt {prompt.name} with {len(group)} samples where "
                    f"{request.sampling.count} of its own were asked for"
                )
        if len(groups) != len(request.prompts):
            raise EngineError(f"an engine answered {len(groups)} of {len(request.prompts)} prompts")
        for prompt, group in zip(request.prompts, groups, strict=True):
            turn = prompt.turn
            self._open.remove(turn)
            self._deaths.pop(turn, None)
            self._finished[turn] = group

    def requeue(self, request: GenerateRequest, cause: str) -> None:
        """Puts the request of a dead actor at the front, in two exclusive halves: a prompt that kills engines soon
        takes no other with it.

        Raises:
            EngineError: a prompt of the request has been in too many deaths.
        """
        self._deaths.update(prompt.turn for prompt in request.prompts)
        worst = max(request.prompts, key=lambda prompt: self._deaths[prompt.turn])
        deaths, count = self._deaths[worst.turn], len(request.prompts)
        if deaths >= MAX_DEATHS_OF_A_PROMPT:
            others = f" (or one of {count - 1} in the same request)" if count > 1 else ""
            raise EngineError(f"{deaths} rollout actors died over prompt {worst.name}{others}: {cause}")
        middle = (count + 1) // 2
        halves = [request.prompts[:middle], request.prompts[middle:]]
        self._queue.extendleft(
            GenerateRequest(half, request.sampling, exclusive=True) for half in reversed(halves) if half
        )

    def collect(self, turns: Sequence[PromptTurn]) -> list[list[Sample]] | None:
        """Removes and returns the groups of these turns once all are finished; None before."""
        if not all(turn in self._finished for turn in turns):
            return None
        return [self._finished.pop(turn) for turn in turns]

    def collect_all(self, at_least: int) -> list[list[Sample]] | None:
        """Removes and returns all finished groups, in the order in which they finished; None while there are fewer."""
        return None if len(self._finished) < at_least else self.collect_any(len(self._finished))

    def collect_any(self, count: int) -> list[list[Sample]] | None:
        """Removes and returns the `count` groups that finished first; None while there are fewer."""
        if len(self._finished) < count:
            return None
        return [self._finished.pop(turn) for turn in list(self._finished)[:count]]
