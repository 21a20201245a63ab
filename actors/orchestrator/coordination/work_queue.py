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

    @property
    def samples(self) -> int:
        """The number of completions that are asked for."""
        return len(self.prompts) * self.sampling.count

    def __str__(self) -> str:
        more = len(self.prompts) - 1
        return f"prompt {self.prompts[0].name}" + (f" and {more} more" if more else "")


class WorkQueue:
    """Queues requests and keeps finished groups of samples. Every prompt that is added is collected once.

    Attributes:
        open_samples: completions that were asked for and are not finished.
    """

    def __init__(self) -> None:
        self._queue: deque[GenerateRequest] = deque()
        # The version of the weights that each prompt was begun with; None while it waits.
        self._open: dict[PromptTurn, int | None] = {}
        self._begun: Counter[int] = Counter()
        self.open_samples = 0
        self._deaths: Counter[PromptTurn] = Counter()
        self._finished: dict[PromptTurn, tuple[list[Sample], int]] = {}

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
        self._open.update(dict.fromkeys(turns))
        self.open_samples += len(prompts) * sampling.count
        self._queue.extend(
            GenerateRequest(tuple(prompts[start : start + size]), sampling) for start in range(0, len(prompts), size)
        )

    @property
    def begun(self) -> dict[int, int]:
        """For each version of the weights, the number of prompts that were begun with it and are not yet collected."""
        return dict(self._begun)

    def first(self) -> GenerateRequest | None:
        """Returns the next request, or None if there is none."""
        return self._queue[0] if self._queue else None

    def take(self, version: int = 0) -> GenerateRequest:
        """Removes and returns the next request, which is begun with that version of the weights."""
        request = self._queue.popleft()
        for prompt in request.prompts:
            self._open[prompt.turn] = version
        self._begun[version] += len(request.prompts)
        return request

    def finish(self, prompt: Prompt, count: int, group: list[Sample]) -> None:
        """Keeps the samples of a prompt until they are collected.

        Args:
            count: how many were asked for.

        Raises:
            EngineError: samples lack, or are of another prompt; nothing has been kept then.
        """
        own = all(sample.id.prompt == prompt.id and sample.id.epoch == prompt.epoch for sample in group)
        if len(group) != count or not own:
            raise EngineError(
                f"an engine answered prompt {prompt.name} with {len(group)} samples where {count} of its own were "
                "asked for"
            )
        turn = prompt.turn
        version = self._open.pop(turn)
        self._deaths.pop(turn, None)
        self._finished[turn] = group, version or 0
        self.open_samples -= count

    def requeue(self, prompts: Sequence[Prompt], sampling: Sampling, cause: str) -> None:
        """Puts prompts that a dead actor has not answered at the front, in two exclusive halves: a prompt that kills
        engines soon takes no other with it.

        Raises:
            EngineError: one of the prompts has been in too many deaths.
        """
        for prompt in prompts:
            version = self._open[prompt.turn]
            self._open[prompt.turn] = None
            self._forget(version or 0)
        self._deaths.update(prompt.turn for prompt in prompts)
        worst = max(prompts, key=lambda prompt: self._deaths[prompt.turn])
        deaths, count = self._deaths[worst.turn], len(prompts)
        if deaths >= MAX_DEATHS_OF_A_PROMPT:
            others = f" (or one of {count - 1} in the same request)" if count > 1 else ""
            raise EngineError(f"{deaths} rollout actors died over prompt {worst.name}{others}: {cause}")
        middle = (count + 1) // 2
        halves = [tuple(prompts[:middle]), tuple(prompts[middle:])]
        self._queue.extendleft(GenerateRequest(half, sampling, exclusive=True) for half in reversed(halves) if half)

    def collect(self, turns: Sequence[PromptTurn]) -> list[list[Sample]] | None:
        """Removes and returns the groups of these turns once all are finished; None before."""
        if not all(turn in self._finished for turn in turns):
            return None
        groups = []
        for turn in turns:
            group, version = self._finished.pop(turn)
            self._forget(version)
            groups.append(group)
        return groups

    def collect_all(self, at_least: int) -> list[list[Sample]] | None:
        """Removes and returns all finished groups, in the order in which they finished; None while there are fewer."""
        return None if len(self._finished) < at_least else self.collect(list(self._finished))

    def collect_any(self, count: int) -> list[list[Sample]] | None:
        """Removes and returns the `count` groups that finished first; None while there are fewer."""
        return None if len(self._finished) < count else self.collect(list(self._finished)[:count])

    def _forget(self, version: int) -> None:
        self._begun[version] -= 1
        if not self._begun[version]:
            del self._begun[version]
