"""Records which prompts have been learned from: each ends trained, filtered or failed, once in every epoch."""

import random
from collections import Counter, deque
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Any

import xxhash

from actors.orchestrator.oversampling import Oversampling
from actors.orchestrator.verdict_counts import VerdictCounts
from actors.types import Prompt, PromptTurn
from cluster.errors import StageError


class Outcome(StrEnum):
    """The end of a turn: its samples changed the weights; or held nothing to learn, because all rewards were equal; or
    too few of them got a reward, each time that they were drawn; or no engine survived drawing them."""

    TRAINED = "trained"
    FILTERED = "filtered"
    FAILED = "failed"


# How often the samples of a turn are drawn before it counts as failed.
MAX_DRAWS = 3


class Ledger:
    """Hands out prompts epoch after epoch, each epoch in an order of its own, and records how each turn ended.

    Its state is saved with the learner's checkpoint. Turns that were handed out after it, or had no outcome by then,
    have not touched those weights: a resumed run hands them out first.

    Args:
        prompts: all prompts of the run. Their order does not matter; the names decide the orders of the epochs.
        seed: decides the orders, with the names.

    Attributes:
        verdicts: counts those that turns of this ledger got.
        oversampling: how many prompts to draw with dynamic sampling.

    Raises:
        ValueError: there is no prompt, or two have the same id or name.
    """

    def __init__(self, prompts: Collection[Prompt], seed: int) -> None:
        # Ids by name, sorted by name.
        self._ids = {prompt.name: prompt.id for prompt in sorted(prompts, key=lambda prompt: prompt.name)}
        if not prompts or len(set(self._ids.values())) < len(prompts):
            raise ValueError("a ledger needs prompts, each with an id and a name of its own")
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled(0)
        self._again: deque[PromptTurn] = deque()
        self._outstanding: dict[PromptTurn, None] = {}
        self._outcomes: Counter[str] = Counter()
        # For each turn without an outcome, how often its samples were drawn and too few got a reward.
        self._failed_draws: Counter[PromptTurn] = Counter()
        self.verdicts, self.oversampling = VerdictCounts(), Oversampling()

    @property
    def outcomes(self) -> dict[str, int]:
        """The number of turns that ended in each way."""
        return {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}

    @property
    def outstanding(self) -> list[PromptTurn]:
        """The turns that were handed out and have no outcome, oldest first."""
        return list(self._outstanding)

    def take(self, count: int) -> list[PromptTurn]:
        """Hands out the next turns: first those that were put back, then on through the epochs."""
        turns = [self._again.popleft() if self._again else self._next() for _ in range(count)]
        self._outstanding.update(dict.fromkeys(turns))
        return turns

    def commit(self, turns: Iterable[PromptTurn], outcome: Outcome) -> None:
        """Records how turns ended.

        Raises:
            ValueError: a turn is not outstanding; nothing has been recorded then.
        """
        ended = self._remove(turns)
        self._outcomes[outcome.value] += len(ended)
        for turn in ended:
            self._failed_draws.pop(turn, None)

    def failed_draws(self, turn: PromptTurn) -> int:
        """Returns how often a turn's samples were drawn and too few got a reward."""
        return self._failed_draws[turn]

    def redraw(self, turn: PromptTurn) -> bool:
        """Puts a turn back of whose samples too few got a reward, or records it as failed after the last of its draws.

        Returns:
            Whether it is drawn again.

        Raises:
            ValueError: the turn is not outstanding.
        """
        if self._failed_draws[turn] + 1 >= MAX_DRAWS:
            self.commit([turn], Outcome.FAILED)
            return False
        self.requeue([turn])
        self._failed_draws[turn] += 1
        return True

    def requeue(self, turns: Iterable[PromptTurn]) -> None:
        """Puts turns back that gave no samples to train on; they are handed out again before all others, in this order.

        Raises:
            ValueError: a turn is not outstanding; nothing has been put back then.
        """
        self._again.extendleft(reversed(self._remove(turns)))

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole state as JSON values."""
        return {
            "prompts": self._fingerprint(),
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "unsettled": [[turn.epoch, turn.prompt] for turn in [*self._outstanding, *self._again]],
            "outcomes": self.outcomes,
            "failed_draws": [[turn.epoch, turn.prompt, count] for turn, count in self._failed_draws.items() if count],
            "verdicts": self.verdicts.state_dict(),
            "learnable": self.oversampling.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called. Checkpoints of earlier versions, whose ids were the names, are read.

        Raises:
            StageError: the state is of other prompts or another seed.
        """
        if (state["prompts"], state["seed"]) != (self._fingerprint(), self._seed):
            raise StageError("the ledger in the checkpoint is of other prompts or another seed than this run's")
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled(self._epoch)
        self._again = deque(PromptTurn(epoch, self._ids.get(prompt, prompt)) for epoch, prompt in state["unsettled"])
        self._outstanding = {}
        self._outcomes = Counter(state["outcomes"])
        # Checkpoints of earlier versions count no failures: there, one ended the run.
        draws = state.get("failed_draws", [])
        self._failed_draws = Counter({PromptTurn(epoch, prompt): count for epoch, prompt, count in draws})
        if "verdicts" in state:
            self.verdicts.load_state_dict(state["verdicts"])
        self.oversampling.load_state_dict(state.get("learnable", ""))

    def _next(self) -> PromptTurn:
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffled(self._epoch)
        turn = PromptTurn(self._epoch, self._order[self._position])
        self._position += 1
        return turn

    def _remove(self, turns: Iterable[PromptTurn]) -> list[PromptTurn]:
        listed = list(turns)
        strange = [turn for turn, times in Counter(listed).items() if times > 1 or turn not in self._outstanding]
        if strange:
            raise ValueError(f"prompt {strange[0].prompt} of epoch {strange[0].epoch} is not outstanding")
        for turn in listed:
            del self._outstanding[turn]
        return listed

    def _shuffled(self, epoch: int) -> list[str]:
        ids = list(self._ids.values())
        return random.Random(f"{self._seed}:{epoch}").sample(ids, len(ids))

    def _fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for name in self._ids:
            digest.update(name.encode() + b"\0")
        return digest.hexdigest()
