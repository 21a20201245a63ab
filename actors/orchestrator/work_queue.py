"""Which actor may do what, and which prompts wait for whom. No Ray here: the fleet carries out what is decided."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from actors.types import Prompt, Sample, Sampling
from cluster.errors import EngineError

# Sequences decoded at once, beyond which a step of an engine costs more than it gains on the CPUs measured. On a GPU,
# vLLM chooses by the card, up to 1,024; an engine answers two calls at once, each of which brings half of that.
CPU_SEQUENCES, GPU_SEQUENCES = 128, 512
# One death may be the machine's fault and two may be bad luck; the third with the same prompt is the prompt's.
_DEATHS_A_PROMPT_MAY_CAUSE = 3


class ActorState(StrEnum):
    """Where a rollout actor is in its life."""

    STARTING = "starting"
    STALE = "stale"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


# At prompts, or at the weights in between.
WORKING = {ActorState.READY, ActorState.STALE}

# DEAD leads nowhere: what replaces a dead actor starts anew and has to pull the current weights before it is READY.
_NEXT = {
    ActorState.STARTING: {ActorState.STALE, ActorState.DEAD},
    ActorState.STALE: {ActorState.READY, ActorState.DRAINING, ActorState.DEAD},
    ActorState.READY: {ActorState.STALE, ActorState.DRAINING, ActorState.DEAD},
    ActorState.DRAINING: {ActorState.DEAD},
    ActorState.DEAD: set[ActorState](),
}


def advance(state: ActorState, to: ActorState) -> ActorState:
    """The new state.

    Raises:
        ValueError: an actor may not go from the one state to the other.
    """
    if to not in _NEXT[state]:
        raise ValueError(f"a rollout actor cannot go from {state} to {to}")
    return to


@dataclass(frozen=True)
class GenerateRequest:
    """Prompts that one actor answers in one call; `alone` if it is to be at no others meanwhile."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    alone: bool = False


class WorkList:
    """Prompts waiting, and groups of samples that are finished. Every prompt given in comes out once."""

    def __init__(self) -> None:
        self._queue: deque[GenerateRequest] = deque()
        self._open: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._finished: dict[str, list[Sample]] = {}

    @property
    def outstanding(self) -> int:
        """Prompts given in and not answered."""
        return len(self._open)

    def add(self, prompts: Sequence[Prompt], sampling: Sampling, size: int) -> None:
        """Queues prompts in chunks of at most `size`.

        Raises:
            ValueError: a prompt with that id is in work, or finished and not yet collected.
        """
        ids = Counter(prompt.id for prompt in prompts)
        twice = [name for name, count in ids.items() if count > 1 or name in self._open or name in self._finished]
        if twice:
            raise ValueError(f"prompt {twice[0]} is in work already; its id must be unique")
        self._open.update(ids)
        self._queue.extend(
            GenerateRequest(tuple(prompts[start : start + size]), sampling) for start in range(0, len(prompts), size)
        )

    def take(self, beside: bool = False) -> GenerateRequest | None:
        """The next chunk, or None; also if an actor is to have it `beside` another, and it is one to be alone."""
        if not self._queue or (beside and self._queue[0].alone):
            return None
        return self._queue.popleft()

    def finish(self, chunk: GenerateRequest, groups: Sequence[list[Sample]]) -> None:
        """Books the answer to a chunk.

        Raises:
            EngineError: the answer does not have the asked number of samples for each prompt.
        """
        for prompt, group in zip(chunk.prompts, groups, strict=False):
            if len(group) != chunk.sampling.count or {sample.prompt_id for sample in group} != {prompt.id}:
                raise EngineError(f"an engine answered prompt {prompt.id} with {len(group)} samples of another kind")
        if len(groups) != len(chunk.prompts):
            raise EngineError(f"an engine answered {len(groups)} of {len(chunk.prompts)} prompts")
        for prompt, group in zip(chunk.prompts, groups, strict=True):
            self._open.remove(prompt.id)
            self._deaths.pop(prompt.id, None)
            self._finished[prompt.id] = group

    def requeue(self, chunk: GenerateRequest, cause: str) -> None:
        """Puts the chunk of a dead actor at the front, in halves that are to be alone, so that a prompt that kills
        engines soon takes no other with it.

        Raises:
            EngineError: the death was one too many for a prompt of the chunk.
        """
        ids = [prompt.id for prompt in chunk.prompts]
        self._deaths.update(ids)
        worst = max(ids, key=self._deaths.__getitem__)
        if self._deaths[worst] >= _DEATHS_A_PROMPT_MAY_CAUSE:
            others = f" (or one of {len(ids) - 1} beside it)" if len(ids) > 1 else ""
            raise EngineError(f"{self._deaths[worst]} rollout actors died over prompt {worst}{others}: {cause}")
        middle = (len(ids) + 1) // 2
        halves = [chunk.prompts[:middle], chunk.prompts[middle:]]
        self._queue.extendleft(GenerateRequest(half, chunk.sampling, alone=True) for half in reversed(halves) if half)

    def collect(self, ids: Sequence[str]) -> dict[str, list[Sample]] | None:
        """Hands out the groups of these prompts once all are finished; None before."""
        if not all(name in self._finished for name in ids):
            return None
        return {name: self._finished.pop(name) for name in ids}

    def finished(self, at_least: int) -> list[list[Sample]] | None:
        """Hands out all groups that are finished, in that order; None while there are fewer."""
        return None if len(self._finished) < at_least else self.collect_any(len(self._finished))

    def collect_any(self, count: int) -> list[list[Sample]] | None:
        """Hands out the `count` groups that finished first; None while there are fewer."""
        if len(self._finished) < count:
            return None
        return [self._finished.pop(name) for name in list(self._finished)[:count]]
