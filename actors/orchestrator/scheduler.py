"""Turns prompts of the ledger into scored batches, no further ahead of the learner than the staleness allows."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from actors.algorithms.normalization import are_equal
from actors.orchestrator.admission import Finished
from actors.orchestrator.coordination.coordinator import Coordinator
from actors.orchestrator.coordination.protocols import RewardFuture
from actors.orchestrator.ledger import Ledger, Outcome
from actors.types import Failure, Prompt, PromptTurn, Sample, Sampling, Verdict
from cluster.errors import StageError
from cluster.recipe.rlhf.section import Rlhf
from cluster.run.metrics import Stopwatch
from cluster.trace import PromptTrace, Span

# The most rounds in which the batch of one step is filled up: for prompts that are filtered, or drawn again because too
# few of their samples got a reward.
ROUNDS = 10


@dataclass
class PendingRewards:
    """Rewards that were requested together.

    Attributes:
        turns: the prompts that they are for.
        begin: when they were requested.
        future: the rewards.
        end: when they were first seen to be ready; None before.
        in_trace: whether a step's trace has them.
    """

    turns: list[PromptTurn]
    begin: float
    future: RewardFuture
    end: float | None = None
    in_trace: bool = False

    def wait(self, now: Callable[[], float]) -> list[list[Verdict]]:
        """Waits, and returns the verdicts on each prompt's samples. Raises as `future.wait` does."""
        rewards = self.future.wait()
        self.end = self.end or now()
        return rewards


@dataclass(frozen=True)
class PendingGroup:
    """The samples of one prompt, whose rewards have been requested.

    Attributes:
        collected: when the fleet handed the samples out.
        rewards: those of all prompts that were collected together.
        index: of this prompt among them.
    """

    samples: list[Sample]
    collected: float
    rewards: PendingRewards
    index: int

    @property
    def turn(self) -> PromptTurn:
        """The prompt."""
        return self.samples[0].id.turn

    @cached_property
    def version(self) -> int:
        """The oldest version of the weights that drew any token."""
        return min(version for sample in self.samples for version in sample.weight_versions)


@dataclass(frozen=True)
class RolloutGroup:
    """The samples of one prompt in a batch."""

    turn: PromptTurn
    prompt: Prompt
    pending: PendingGroup
    trace: PromptTrace


@dataclass
class TrainBatch:
    """The samples and rewards of one step. The same index is the same prompt in all lists but `spans`.

    Attributes:
        turns, prompts: P prompts.
        groups: the samples of each prompt that got a reward.
        rewards: the reward of every sample.
        traces: where each prompt was, for the run page.
        spans: when rewards were computed, for the run page.
        filtered: prompts that were left out because all their rewards were equal.
        surplus: prompts that were put back because more of those drawn at once held something to learn than the step
            takes.
        failed_verdicts: samples that were left out because they got no reward.
        redrawn: times that a prompt was drawn again because too few of its samples got a reward.
        failed: prompts that were left out because this happened each time, or because no engine survived them.
        rollout_seconds: how long samples were waited for.
        reward_seconds: how long rewards were waited for once the samples were there.
    """

    turns: list[PromptTurn] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    groups: list[list[Sample]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    traces: list[PromptTrace] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    filtered: int = 0
    surplus: int = 0
    failed_verdicts: int = 0
    redrawn: int = 0
    failed: int = 0
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0

    def add(self, group: RolloutGroup, samples: list[Sample], rewards: list[float]) -> None:
        """Adds one prompt with its samples and their rewards."""
        self.turns.append(group.turn)
        self.prompts.append(group.prompt)
        self.groups.append(samples)
        self.rewards.append(rewards)
        self.traces.append(group.trace)


@dataclass
class RolloutScheduler:
    """Keeps the fleet busy and makes batches; rewards are requested as soon as samples are drawn.

    With `max_staleness` 0, a batch is drawn when it is asked for, by the current weights. With n, n more batches are in
    flight meanwhile (capacity as in AReaL, Fu et al. 2025). No sample becomes too stale to learn from: a batch waits
    for answers for which the next one would be too late, and takes the oldest first (`admission`).

    Attributes:
        prompts: all prompts of the ledger, by id.
        seed: of the run; the seeds of draws come from it, the weight version and the prompt.
        request_rewards: requests the rewards of each prompt's samples.
        inflight: turns that no batch has had yet, and when each was submitted to the fleet.
        finished: the samples of the turns in flight that the fleet is done with.
        pending_rewards: rewards that have not been seen to be ready.
    """

    fleet: Coordinator
    ledger: Ledger
    prompts: Mapping[str, Prompt]
    settings: Rlhf
    seed: int
    request_rewards: Callable[[list[Prompt], list[list[Sample]]], RewardFuture]
    now: Callable[[], float] = time.monotonic
    inflight: dict[PromptTurn, float] = field(default_factory=dict)
    finished: Finished[PendingGroup] = field(default_factory=Finished)
    pending_rewards: list[PendingRewards] = field(default_factory=list)

    def collect(self, at_least: int = 0) -> None:
        """Waits until the fleet is done with `at_least` prompts, and requests the rewards of all it is done with."""
        self._note_ready_rewards()
        groups = self.fleet.collect_all(at_least)
        if groups:
            turns, now = [group[0].id.turn for group in groups], self.now()
            prompts = [self.prompts[turn.prompt] for turn in turns]
            rewards = PendingRewards(turns, now, self.request_rewards(prompts, groups))
            self.pending_rewards.append(rewards)
            for index, group in enumerate(groups):
                self.finished.add(PendingGroup(group, now, rewards, index))

    def next_batch(self, version: int, count: int) -> list[RolloutGroup]:
        """Returns samples of `count` prompts for the step that makes `version + 1`; rewards may still be pending."""
        # Fewer in the last steps: no prompt is drawn for a step beyond the last.
        ahead = min(self.settings.fleet.max_staleness, max(0, self.settings.steps - 1 - version))
        self._submit(
            self.ledger.take(max(0, ahead * self.settings.prompts_per_step + count - len(self.inflight))), version
        )
        self.collect()
        while not self._may_train(version, count):
            # Synchronous with one actor: rewards are requested together, and are the same, bit by bit, in every run.
            whole = not self.settings.fleet.max_staleness and self.settings.fleet.rollout_limit == 1
            self.collect(at_least=len(self.inflight) - len(self.finished) if whole else 1)
        return [self._hand_over(group, version) for group in self.finished.take(count)]

    def _may_train(self, version: int, count: int) -> bool:
        return self.finished.may_train(
            count, version, self.settings.fleet.max_staleness, self.settings.prompts_per_step, self.fleet.begun()
        )

    def _hand_over(self, pending: PendingGroup, version: int) -> RolloutGroup:
        turn = pending.turn
        submitted, prompt = self.inflight.pop(turn), self.prompts[turn.prompt]
        tokens = sum(sample.length for sample in pending.samples)
        trace = PromptTrace(str(turn), submitted, pending.collected, tokens, version - pending.version, prompt.name)
        return RolloutGroup(turn, prompt, pending, trace)

    def scored_batch(self, version: int, dynamic: bool) -> TrainBatch:
        """Returns the batch of the step that makes `version + 1`, with rewards.

        Args:
            dynamic: whether prompts whose samples all have the same reward are recorded as filtered and replaced
                (dynamic sampling, Yu et al. 2025, section 3.2). Rewards that differ by rounding are the same. Where
                samples must not be stale, so many prompts are drawn at once that about enough are left, and the first
                ones in the ledger's order are taken, whichever finished first; the others are put back and drawn again
                by the next weights. Else prompts that were drawn ahead take the places.

        Raises:
            StageError: more verdicts failed than the recipe allows; or after many rounds there is nothing to learn:
                every prompt's samples had the same reward, or none.
        """
        batch, size = TrainBatch(), self.settings.prompts_per_step
        for _ in range(ROUNDS):
            clock = Stopwatch(self.now)
            groups = self._draw(version, size - len(batch.groups), dynamic)
            batch.rollout_seconds += clock.lap()
            verdicts = [group.pending.rewards.wait(self.now)[group.pending.index] for group in groups]
            batch.reward_seconds += clock.lap()
            batch.spans += self._reward_spans(groups)
            surplus: list[PromptTurn] = []
            for group, own in zip(groups, verdicts, strict=True):
                if len(batch.groups) < size:
                    self._add(batch, group, own, dynamic)
                else:
                    surplus.append(group.turn)
            self.ledger.requeue(surplus)
            batch.surplus += len(surplus)
            self.ledger.verdicts.check(self.settings.max_failed_verdicts)
            if len(batch.groups) == size:
                return batch
        if not batch.groups:
            raise StageError(
                f"the samples of {batch.filtered} prompts in turn got one reward each: there is nothing to learn; "
                "the task is too easy or too hard for the model, or rlhf.rewards cannot tell answers apart"
                + (f"; {batch.failed_verdicts} got none, the last: {self.ledger.verdicts.last}" * bool(batch.redrawn))
            )
        return batch

    def _draw(self, version: int, needed: int, dynamic: bool) -> list[RolloutGroup]:
        """Returns samples of as many prompts as are needed; with dynamic sampling, of more if none may be stale."""
        if not dynamic or self.settings.fleet.max_staleness:
            return self.next_batch(version, needed)
        groups = self.next_batch(version, self.ledger.oversampling.prompts(needed))
        order = {turn: number for number, turn in enumerate(self.ledger.outstanding)}
        return sorted(groups, key=lambda group: order[group.turn])

    def _add(self, batch: TrainBatch, group: RolloutGroup, verdicts: list[Verdict], dynamic: bool) -> None:
        """Adds a prompt with the samples that got a reward, if they are enough to learn from; else records its end."""
        batch.failed_verdicts += self.ledger.verdicts.add(verdicts)
        judged = [
            (sample, verdict)
            for sample, verdict in zip(group.pending.samples, verdicts, strict=True)
            if not isinstance(verdict, Failure)
        ]
        rewards = [reward for _, reward in judged]
        # Half of them, and at least two: most algorithms compare samples of one prompt.
        drawn = len(verdicts)
        if group.pending.samples[0].given_up:
            # No engine survived this prompt: drawn again, it would kill more of them.
            self.ledger.commit([group.turn], Outcome.FAILED)
            batch.failed += 1
        elif len(judged) < max(min(2, drawn), math.ceil(drawn / 2)):
            again = self.ledger.redraw(group.turn)
            batch.redrawn, batch.failed = batch.redrawn + again, batch.failed + (not again)
        elif dynamic and are_equal(rewards):
            self.ledger.oversampling.add(learnable=False)
            self.ledger.commit([group.turn], Outcome.FILTERED)
            batch.filtered += 1
        else:
            self.ledger.oversampling.add(learnable=True)
            batch.add(group, [sample for sample, _ in judged], rewards)

    def _note_ready_rewards(self) -> None:
        for rewards in self.pending_rewards:
            if rewards.end is None and rewards.future.ready():
                rewards.end = self.now()
        self.pending_rewards = [rewards for rewards in self.pending_rewards if rewards.end is None]

    def _reward_spans(self, groups: Sequence[RolloutGroup]) -> Iterator[Span]:
        for rewards in (group.pending.rewards for group in groups):
            if not rewards.in_trace:
                rewards.in_trace = True
                turns = [str(turn) for turn in rewards.turns]
                yield Span("rewards", "reward", rewards.begin, rewards.end or self.now(), turns)

    def _submit(self, turns: list[PromptTurn], version: int) -> None:
        if not turns:
            return
        self.inflight.update(dict.fromkeys(turns, self.now()))
        # Turns that are drawn again get another seed: the same samples would fail again.
        by_draw: dict[int, list[PromptTurn]] = {}
        for turn in turns:
            by_draw.setdefault(self.ledger.failed_draws(turn), []).append(turn)
        for draw, own in by_draw.items():
            self._submit_draw(own, [self.seed, version, *([draw] if draw else [])])

    def _submit_draw(self, turns: list[PromptTurn], entropy: list[int]) -> None:
        settings = self.settings
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        sampling = Sampling(
            settings.sampling.samples_per_prompt, settings.sampling.temperature, settings.sampling.max_tokens, seed
        )
        prompts = [replace(self.prompts[turn.prompt], epoch=turn.epoch) for turn in turns]
        # In parts, so that the first step need not wait until the completions of later ones are drawn too.
        for begin in range(0, len(prompts), settings.prompts_per_step):
            self.fleet.submit(prompts[begin : begin + settings.prompts_per_step], sampling)
