"""Gives requests to rollout actors, and takes the samples that they hand over."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from actors.orchestrator.coordination.accounting import FleetStats
from actors.orchestrator.coordination.calls import Calls, PendingCall
from actors.orchestrator.coordination.members import WORKING, ActorState, Member, Members, OpenRequest
from actors.orchestrator.coordination.protocols import Clock
from actors.orchestrator.coordination.work_queue import WorkQueue
from actors.types import Sample
from cluster.errors import EngineError


class Dispatcher:
    """Keeps the actors of a fleet at work.

    Args:
        members: the actors.
        calls: sends calls to them.
        queue: the requests that wait, and the samples that are finished.
        stats: counts the actors' work.
        clock: tells the time.
        sequences: the completions that an engine decodes at once. An actor is asked for twice as many, so that none of
            its places is empty until its next request arrives.
        settle: runs an action that may free actors, then gives them the requests that wait.
        on_request_done: is called with each actor that has answered a request.
    """

    def __init__(
        self,
        members: Members,
        calls: Calls,
        queue: WorkQueue,
        stats: FleetStats,
        clock: Clock,
        sequences: int,
        settle: Callable[[Callable[[], None]], None],
        on_request_done: Callable[[Member], None],
    ) -> None:
        self._members, self._calls, self._queue = members, calls, queue
        self._stats, self._clock, self._sequences = stats, clock, sequences
        self._settle, self._on_request_done = settle, on_request_done

    def assign(self) -> None:
        """Gives the requests that wait to the actors that take any, the least busy first."""
        available = self._members.available
        while (request := self._queue.first()) and (member := available.first()):
            samples = request.samples
            if member.requests and (request.exclusive or member.open_samples + samples > self._most(samples)):
                return
            now = self._clock.now()
            if not member.requests:
                member.busy_since = now
            opened = OpenRequest(self._queue.take(member.version), now)
            member.requests.append(opened)
            member.open_samples += samples
            available.update(member)
            self._calls.watch(member)
            report = partial(self._on_report, member, opened)
            send = partial(member.worker.generate, request, report)
            self._calls.send(member, "draw", str(request), send, partial(self._on_end, opened))

    def _most(self, samples: int) -> int:
        """Returns the most completions to ask an actor for: its share of all, so that something is left for those that
        are about to be ready, but two requests of so many, so that the next is there when one is done; and no more than
        keeps all places of its engine full."""
        actors = self._members.count(ActorState.STARTING, *WORKING)
        share = math.ceil(self._queue.open_samples / max(1, actors))
        return min(max(share, 2 * samples), 2 * self._sequences)

    def _on_report(self, member: Member, opened: OpenRequest, groups: Sequence[tuple[int, list[Sample]]]) -> None:
        if member.state is ActorState.DEAD:
            return
        self._calls.note_progress(member)
        if groups:
            self._settle(partial(self._take, member, opened, groups))

    def _take(self, member: Member, opened: OpenRequest, groups: Sequence[tuple[int, list[Sample]]]) -> None:
        count = opened.request.sampling.count
        for index, group in groups:
            prompt = opened.left.get(index)
            if prompt is None:
                raise EngineError(f"{opened.request}: an engine answered a prompt twice, or one that it was not asked")
            self._queue.finish(prompt, count, group)
            del opened.left[index]
        tokens = sum(sample.length for _, group in groups for sample in group)
        opened.tokens += tokens
        member.open_samples -= count * len(groups)
        self._stats.add_tokens(tokens, self._clock.now() - member.busy_since)
        member.busy_since = self._clock.now()
        self._members.available.update(member)

    def _on_end(self, opened: OpenRequest, call: PendingCall, _: None) -> None:
        member = call.member
        if opened.left:
            asked = len(opened.request.prompts)
            raise EngineError(f"an engine answered {asked - len(opened.left)} of {asked} prompts")
        member.requests.remove(opened)
        self._calls.note_progress(member)
        self._stats.add_request(member.name, call.begin, opened.request.prompts, opened.tokens)
        self._on_request_done(member)
        self._members.available.update(member)
