"""Which prompts have been learned from: each ends trained or filtered, once in every pass over them."""

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import xxhash

from cluster.errors import StageError


class Outcome(StrEnum):
    """How a prompt ended: its samples moved the weights, or taught nothing (all rewards equal)."""

    TRAINED = "trained"
    FILTERED = "filtered"


class PromptTurn(NamedTuple):
    """One turn of one prompt: the pass over the prompts, from 0, and the prompt."""

    epoch: int
    prompt_id: str


class Ledger:
    """Hands out prompts pass after pass, each pass in an order of its own, and books how each turn ended.

    Its state is saved with the learner's checkpoint: what was handed out after it, or was not settled by then, has not
    touched those weights and is handed out again first.

    Args:
        prompt_ids: all prompts of the run, each named once.
        seed: decides the orders.
    """

    def __init__(self, prompt_ids: Sequence[str], seed: int) -> None:
        if not prompt_ids or len(set(prompt_ids)) < len(prompt_ids):
            raise ValueError("a ledger needs prompts, each named once")
        self._prompts = sorted(prompt_ids)
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled(0)
        self._again: deque[PromptTurn] = deque()
        self._out: dict[PromptTurn, None] = {}
        self._outcomes: Counter[str] = Counter()

    @property
    def outcomes(self) -> dict[str, int]:
        """How many turns ended in each way."""
        return {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}

    @property
    def outstanding(self) -> list[PromptTurn]:
        """Turns that were handed out and not settled, oldest first."""
        return list(self._out)

    def take(self, count: int) -> list[PromptTurn]:
        """Hands out the next turns: what came back first, then on through the passes."""
        tickets = [self._again.popleft() if self._again else self._next() for _ in range(count)]
        self._out.update(dict.fromkeys(tickets))
        return tickets

    def commit(self, tickets: Iterable[PromptTurn], outcome: Outcome) -> None:
        """Books how turns ended.

        Raises:
            ValueError: a turn is not outstanding; nothing has been booked then.
        """
        settled = self._take_in(tickets)
        self._outcomes[outcome.value] += len(settled)

    def requeue(self, tickets: Iterable[PromptTurn]) -> None:
        """Takes turns back that came to nothing; they are handed out again before all others, in this order.

        Raises:
            ValueError: a turn is not outstanding; nothing has been taken back then.
        """
        self._again.extendleft(reversed(self._take_in(tickets)))

    def state_dict(self) -> dict[str, Any]:
        """All there is to know, as JSON values."""
        return {
            "prompts": self._fingerprint(),
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "unsettled": [list(ticket) for ticket in [*self._out, *self._again]],
            "outcomes": self.outcomes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called.

        Raises:
            StageError: the state is of other prompts or another seed.
        """
        if (state["prompts"], state["seed"]) != (self._fingerprint(), self._seed):
            raise StageError("the ledger in the checkpoint is of other prompts or another seed than this run's")
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled(self._epoch)
        self._again = deque(PromptTurn(epoch, prompt) for epoch, prompt in state["unsettled"])
        self._out = {}
        self._outcomes = Counter(state["outcomes"])

    def _next(self) -> PromptTurn:
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffled(self._epoch)
        ticket = PromptTurn(self._epoch, self._order[self._position])
        self._position += 1
        return ticket

    def _take_in(self, tickets: Iterable[PromptTurn]) -> list[PromptTurn]:
        listed = list(tickets)
        strange = [ticket for ticket, times in Counter(listed).items() if times > 1 or ticket not in self._out]
        if strange:
            raise ValueError(f"prompt {strange[0].prompt_id} of pass {strange[0].epoch} is not outstanding")
        for ticket in listed:
            del self._out[ticket]
        return listed

    def _shuffled(self, epoch: int) -> list[str]:
        return random.Random(f"{self._seed}:{epoch}").sample(self._prompts, len(self._prompts))

    def _fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for prompt in self._prompts:
            digest.update(prompt.encode() + b"\0")
        return digest.hexdigest()
