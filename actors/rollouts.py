"""Keeps the fleet busy with prompts of the ledger, no further ahead of the learner than the staleness allows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.ledger import Ledger, Outcome, Ticket
from actors.sample import Prompt, Sample, Sampling
from cluster.failures import StageError
from cluster.metrics import Stopwatch
from cluster.rlhf_recipe import Rlhf
from cluster.trace import Handed, Span

# With dynamic sampling: the most rounds in which the batch of one step is filled up.
ROUNDS = 10


class Answering(Protocol):
    """The fleet, as far as prompts go."""

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """As `Coordinator.submit`."""

    def collect(self, count: int) -> list[list[Sample]]:
        """As `Coordinator.collect`."""


@dataclass(frozen=True)
class InWork:
    """A prompt that the fleet has, since `given`."""

    ticket: Ticket
    given: float


@dataclass(frozen=True)
class Answered:
    """A prompt with its samples, and how it came by them."""

    ticket: Ticket
    prompt: Prompt
    group: list[Sample]
    handed: Handed


@dataclass
class Scored:
    """What a step learns from: the same index is the same prompt in all lists but `spans`, when rewards were given."""

    tickets: list[Ticket] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    groups: list[list[Sample]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    handed: list[Handed] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    filtered: int = 0
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0

    def add(self, one: Answered, rewards: list[float]) -> None:
        """One prompt more."""
        self.tickets.append(one.ticket)
        self.prompts.append(one.prompt)
        self.groups.append(one.group)
        self.rewards.append(rewards)
        self.handed.append(one.handed)


@dataclass
class Rollouts:
    """Turns prompts into batches of samples.

    With `max_staleness` 0, a batch is drawn when it is asked for, by the current weights. With n, n batches more are in
    work meanwhile (capacity as in AReaL, Fu et al. 2025); samples that are older all the same are drawn again.
    """

    fleet: Answering
    ledger: Ledger
    prompts: dict[str, Prompt]
    settings: Rlhf
    seed: int
    now: Callable[[], float] = time.monotonic
    in_work: dict[str, InWork] = field(default_factory=dict)

    def next_batch(self, version: int, count: int) -> list[Answered]:
        """Samples of `count` prompts for the step that makes `version + 1`."""
        batch: list[Answered] = []
        ahead = self.settings.max_staleness * self.settings.prompts_per_step
        while len(batch) < count:
            wanted = ahead + count - len(self.in_work) - len(batch)
            self._submit(self.ledger.take(max(0, wanted)), version)
            for group in self.fleet.collect(count - len(batch)):
                name = group[0].prompt_id
                work = self.in_work.pop(name)
                behind = version - min(v for sample in group for v in sample.weight_versions)
                if behind > self.settings.max_staleness:
                    self.ledger.give_back([work.ticket])
                    continue
                tokens = sum(sample.length for sample in group)
                handed = Handed(name, work.given, self.now(), tokens, behind)
                batch.append(Answered(work.ticket, self.prompts[work.ticket.prompt_id], group, handed))
        return batch

    def scored_batch(
        self, version: int, score: Callable[[list[Prompt], list[list[Sample]]], list[list[float]]], dynamic: bool
    ) -> Scored:
        """`next_batch` with rewards. With dynamic sampling (Yu et al. 2025, section 3.2), prompts whose samples all got
        one reward are booked as filtered and others drawn in their place.

        Raises:
            StageError: after many rounds, every prompt's samples got one reward.
        """
        batch, size = Scored(), self.settings.prompts_per_step
        for _ in range(ROUNDS if dynamic else 1):
            clock = Stopwatch(self.now)
            answered = self.next_batch(version, size - len(batch.groups))
            batch.rollout_seconds += clock.lap()
            begin = self.now()
            scores = score([one.prompt for one in answered], [one.group for one in answered])
            batch.spans.append(Span("rewards", "reward", begin, self.now(), [one.handed.id for one in answered]))
            for one, rewards in zip(answered, scores, strict=True):
                if dynamic and min(rewards) == max(rewards):
                    self.ledger.settle([one.ticket], Outcome.FILTERED)
                    batch.filtered += 1
                else:
                    batch.add(one, rewards)
            batch.reward_seconds += clock.lap()
            if len(batch.groups) == size:
                return batch
        if not batch.groups:
            raise StageError(
                f"the samples of {batch.filtered} prompts in turn got one reward each: there is nothing to learn; "
                "the task is too easy or too hard for the model, or rlhf.rewards cannot tell answers apart"
            )
        return batch

    def _submit(self, tickets: list[Ticket], version: int) -> None:
        if not tickets:
            return
        settings = self.settings
        seed = int(np.random.SeedSequence([self.seed, version]).generate_state(1)[0])
        sampling = Sampling(settings.samples_per_prompt, settings.temperature, settings.max_tokens, seed)
        named = {f"{ticket.epoch}:{ticket.prompt_id}": ticket for ticket in tickets}
        given = self.now()
        self.in_work.update({name: InWork(ticket, given) for name, ticket in named.items()})
        asked = [Prompt(name, self.prompts[ticket.prompt_id].token_ids) for name, ticket in named.items()]
        # Apart, so that the first step need not wait until the answers of others are drawn too.
        for begin in range(0, len(asked), settings.prompts_per_step):
            self.fleet.submit(asked[begin : begin + settings.prompts_per_step], sampling)
