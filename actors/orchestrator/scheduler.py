"""Keeps the fleet busy with prompts of the ledger, no further ahead of the learner than the staleness allows."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.orchestrator.ledger import Ledger, Outcome, PromptTurn
from actors.types import Prompt, Sample, Sampling
from cluster.errors import StageError
from cluster.recipe.rlhf import Rlhf
from cluster.run.metrics import Stopwatch
from cluster.trace import PromptTrace, Span

# With dynamic sampling: the most rounds in which the batch of one step is filled up.
ROUNDS = 10


class Answering(Protocol):
    """The fleet, as far as prompts go."""

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """As `Coordinator.submit`."""

    def finished(self, at_least: int) -> list[list[Sample]]:
        """As `Coordinator.finished`."""


class Rewards(Protocol):
    """Rewards that were asked for together."""

    def there(self) -> bool:
        """Whether nobody needs to wait for them."""

    def wait(self) -> list[list[float]]:
        """Of the samples of each prompt, once they are there."""


@dataclass(frozen=True)
class InflightPrompt:
    """A prompt that the fleet has, since `given`."""

    ticket: PromptTurn
    given: float


@dataclass
class PendingRewards:
    """Rewards that the samples of `names`, in this order, wait for.

    Attributes:
        begin, end: when they were asked for, and when they were first seen to be there.
        told: whether that is in the spans of a step.
    """

    names: list[str]
    begin: float
    rewards: Rewards
    end: float | None = None
    told: bool = False

    def wait(self, now: Callable[[], float]) -> list[list[float]]:
        """As `Rewards.wait`."""
        scores = self.rewards.wait()
        self.end = self.end or now()
        return scores


@dataclass(frozen=True)
class PendingGroup:
    """Samples of a prompt that were `handed_out` then, and its number among those that rewards were asked for with."""

    group: list[Sample]
    handed_out: float
    asked: PendingRewards
    number: int


@dataclass(frozen=True)
class RolloutGroup:
    """A prompt with its samples, and how it came by them."""

    ticket: PromptTurn
    prompt: Prompt
    drawn: PendingGroup
    handed: PromptTrace


@dataclass
class TrainBatch:
    """What a step learns from: the same index is the same prompt in all lists but `spans`, when rewards were given.

    `reward_seconds` are those in which there was nothing to wait for but rewards.
    """

    tickets: list[PromptTurn] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    groups: list[list[Sample]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    handed: list[PromptTrace] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    filtered: int = 0
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0

    def add(self, one: RolloutGroup, rewards: list[float]) -> None:
        """One prompt more."""
        self.tickets.append(one.ticket)
        self.prompts.append(one.prompt)
        self.groups.append(one.drawn.group)
        self.rewards.append(rewards)
        self.handed.append(one.handed)


@dataclass
class RolloutScheduler:
    """Turns prompts into batches of samples with rewards, which are asked for as soon as samples are drawn.

    With `max_staleness` 0, a batch is drawn when it is asked for, by the current weights. With n, n batches more are in
    work meanwhile (capacity as in AReaL, Fu et al. 2025); samples that are older all the same are drawn again.

    Attributes:
        ask: asks for the rewards of the samples of each prompt.
        in_work: prompts that no step has had yet, by the names that the fleet knows them by.
        drawn: those of them that the fleet is done with.
        asked: rewards that have not been seen to be there.
    """

    fleet: Answering
    ledger: Ledger
    prompts: dict[str, Prompt]
    settings: Rlhf
    seed: int
    ask: Callable[[list[Prompt], list[list[Sample]]], Rewards]
    now: Callable[[], float] = time.monotonic
    in_work: dict[str, InflightPrompt] = field(default_factory=dict)
    drawn: deque[PendingGroup] = field(default_factory=deque)
    asked: list[PendingRewards] = field(default_factory=list)

    def take_in(self, at_least: int = 0) -> None:
        """Asks for the rewards of what has been drawn; waits until that is so many prompts."""
        self._notice()
        groups = self.fleet.finished(at_least)
        if groups:
            names, now = [group[0].prompt_id for group in groups], self.now()
            prompts = [self.prompts[self.in_work[name].ticket.prompt_id] for name in names]
            asked = PendingRewards(names, now, self.ask(prompts, groups))
            self.asked.append(asked)
            self.drawn.extend(PendingGroup(group, now, asked, number) for number, group in enumerate(groups))

    def next_batch(self, version: int, count: int) -> list[RolloutGroup]:
        """Samples of `count` prompts for the step that makes `version + 1`; their rewards may still be to come."""
        batch: list[RolloutGroup] = []
        ahead = self.settings.fleet.max_staleness * self.settings.prompts_per_step
        while len(batch) < count:
            wanted = ahead + count - len(self.in_work) - len(batch)
            self._submit(self.ledger.take(max(0, wanted)), version)
            if not self.drawn:
                self.take_in(at_least=1)
            drawn = self.drawn.popleft()
            name = drawn.group[0].prompt_id
            work = self.in_work.pop(name)
            behind = version - min(v for sample in drawn.group for v in sample.weight_versions)
            if behind > self.settings.fleet.max_staleness:
                self.ledger.requeue([work.ticket])
                continue
            tokens = sum(sample.length for sample in drawn.group)
            handed = PromptTrace(name, work.given, drawn.handed_out, tokens, behind)
            batch.append(RolloutGroup(work.ticket, self.prompts[work.ticket.prompt_id], drawn, handed))
        return batch

    def scored_batch(self, version: int, dynamic: bool) -> TrainBatch:
        """`next_batch` with rewards. With dynamic sampling (Yu et al. 2025, section 3.2), prompts whose samples all got
        one reward are booked as filtered and others drawn in their place.

        Raises:
            StageError: after many rounds, every prompt's samples got one reward.
        """
        batch, size = TrainBatch(), self.settings.prompts_per_step
        for _ in range(ROUNDS if dynamic else 1):
            clock = Stopwatch(self.now)
            answered = self.next_batch(version, size - len(batch.groups))
            batch.rollout_seconds += clock.lap()
            scores = [one.drawn.asked.wait(self.now)[one.drawn.number] for one in answered]
            batch.reward_seconds += clock.lap()
            batch.spans += self._spans(answered)
            for one, rewards in zip(answered, scores, strict=True):
                if dynamic and min(rewards) == max(rewards):
                    self.ledger.commit([one.ticket], Outcome.FILTERED)
                    batch.filtered += 1
                else:
                    batch.add(one, rewards)
            if len(batch.groups) == size:
                return batch
        if not batch.groups:
            raise StageError(
                f"the samples of {batch.filtered} prompts in turn got one reward each: there is nothing to learn; "
                "the task is too easy or too hard for the model, or rlhf.rewards cannot tell answers apart"
            )
        return batch

    def _notice(self) -> None:
        for asked in self.asked:
            if asked.end is None and asked.rewards.there():
                asked.end = self.now()
        self.asked = [asked for asked in self.asked if asked.end is None]

    def _spans(self, answered: Sequence[RolloutGroup]) -> Iterator[Span]:
        for asked in (one.drawn.asked for one in answered):
            if not asked.told:
                asked.told = True
                yield Span("rewards", "reward", asked.begin, asked.end or self.now(), asked.names)

    def _submit(self, tickets: list[PromptTurn], version: int) -> None:
        if not tickets:
            return
        settings = self.settings
        seed = int(np.random.SeedSequence([self.seed, version]).generate_state(1)[0])
        sampling = Sampling(
            settings.sampling.samples_per_prompt, settings.sampling.temperature, settings.sampling.max_tokens, seed
        )
        named = {f"{ticket.epoch}:{ticket.prompt_id}": ticket for ticket in tickets}
        given = self.now()
        self.in_work.update({name: InflightPrompt(ticket, given) for name, ticket in named.items()})
        asked = [Prompt(name, self.prompts[ticket.prompt_id].token_ids) for name, ticket in named.items()]
        # Apart, so that the first step need not wait until the answers of others are drawn too.
        for begin in range(0, len(asked), settings.prompts_per_step):
            self.fleet.submit(asked[begin : begin + settings.prompts_per_step], sampling)
