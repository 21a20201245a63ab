"""Keeps the prompts that wait for rollout actors, and the samples that wait to be collected."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from actors.types import Prompt, PromptTurn, RolloutId, Sample, Sampling
from cluster.errors import EngineError

# One death may be the machine's fault and two may be bad luck; the third is the prompt's if other prompts were answered
# since the first. Without such a control the machine is as likely a cause, and it takes more.
MAX_DEATHS, MAX_DEATHS_WITHOUT_CONTROL = 3, 6
# The most times the usual seconds without progress: each stall over a prompt doubles the patience of the next.
MAX_PATIENCE = 4


@dataclass(frozen=True)
class GenerateRequest:
    """Prompts that one actor answers in one call.

    Attributes:
        exclusive: whether the actor is to answer no other request meanwhile.
        patience: how many times the usual seconds the actor may be without progress.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    exclusive: bool = False
    patience: int = 1

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
        self._stalls: Counter[PromptTurn] = Counter()
        self._answered = 0
        # For each prompt that an actor died over, how many prompts had been answered before the first death.
        self._answered_before: dict[PromptTurn, int] = {}
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
        self._answered += 1
        self._close(prompt, group)

    def requeue(self, prompts: Sequence[Prompt], sampling: Sampling, cause: str, stalled: bool = False) -> None:
        """Puts prompts that a dead actor has not answered at the front, in two exclusive halves: a prompt that kills
        engines soon takes no other with it.

        A prompt that is alone in its request waits for one other after its second death, so that the two can be
        compared. It is given up, with samples whose `failure` names the cause, after `MAX_DEATHS` if others were
        answered since the first, else after `MAX_DEATHS_WITHOUT_CONTROL`.

        Args:
            stalled: whether the actor was ended because it made no progress, as one on a slow machine makes none.
        """
        turns = [prompt.turn for prompt in prompts]
        self._deaths.update(turns)
        for turn in turns:
            self._answered_before.setdefault(turn, self._answered)
        if stalled:
            self._stalls.update(turns)
        deaths = max(self._deaths[turn] for turn in turns)
        if len(prompts) == 1 and deaths >= self._limit(turns[0]):
            self._give_up(prompts[0], sampling, f"{deaths} rollout actors died over prompt {prompts[0].name}: {cause}")
            return
        for turn in turns:
            self._forget(self._open[turn] or 0)
            self._open[turn] = None
        middle = (len(prompts) + 1) // 2
        patience = min(MAX_PATIENCE, 2 ** max(self._stalls[turn] for turn in turns))
        halves = [
            GenerateRequest(tuple(half), sampling, exclusive=True, patience=patience)
            for half in (prompts[:middle], prompts[middle:])
            if half
        ]
        if len(prompts) == 1 and deaths > 1:
            self._queue.insert(1, halves[0])
        else:
            self._queue.extendleft(reversed(halves))

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

    def _limit(self, turn: PromptTurn) -> int:
        compared = self._answered > self._answered_before[turn]
        return MAX_DEATHS if compared else MAX_DEATHS_WITHOUT_CONTROL

    def _give_up(self, prompt: Prompt, sampling: Sampling, failure: str) -> None:
        version = self._open[prompt.turn] or 0
        ids = [RolloutId(prompt.epoch, prompt.id, sample) for sample in range(sampling.count)]
        self._close(prompt, [Sample(one, [], [], [version], "abort", "", failure=failure) for one in ids])

    def _close(self, prompt: Prompt, group: list[Sample]) -> None:
        turn = prompt.turn
        self._finished[turn] = group, self._open.pop(turn) or 0
        self.open_samples -= len(group)
        for table in (self._deaths, self._stalls, self._answered_before):
            table.pop(turn, None)

    def _forget(self, version: int) -> None:
        self._begun[version] -= 1
        if not self._begun[version]:
            del self._begun[version]
