"""The coordinator, on actors that exist only in simulated time."""

import itertools
import random

import pytest

from actors.rollout.engine import CPU_SEQUENCES
from actors.types import Prompt, Sampling
from cluster.errors import DeadlineError, EngineError
from infra.bench.loops.simulation import Latency, World, weights_of

DEADLINE = 20.0
SAMPLING = Sampling(2, 1.0, 8)


def listed(count: int) -> list[Prompt]:
    return [Prompt(f"q{i}", [1]) for i in range(count)]


@pytest.mark.parametrize(("prompts", "pulled"), [(1, 1), (0, 2)])
def test_an_actor_takes_the_newest_weights_published_while_it_was_busy(prompts: int, pulled: int):
    world = World(Latency(start=1.0, pull=5.0, call=10.0, prompt=0.0, spread=0.0), random.Random(1))
    coordinator = world.coordinator(1, deadline=60.0)
    coordinator.start()
    coordinator.submit(listed(prompts), SAMPLING)
    for version in (1, 2, 3, 4):
        world.timeline.run(1.0)
        coordinator.sync(weights_of(version), wait=False)
    coordinator.wait_synced()
    taken = [span for span in coordinator.take_spans() if span.what == "weights"]
    # Busy, it takes the newest version after its answers; idle, it takes the first one and then the newest.
    assert len(taken) == pulled
    assert [member.version for member in coordinator.statuses()] == [4]


def test_an_actor_is_given_more_before_its_last_answers_and_its_time_counts_once():
    world = World(Latency(start=0.0, call=0.0, prompt=1.0, spread=0.0), random.Random(1))
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    for number in range(4):
        coordinator.submit([Prompt(f"{number}", [1])], SAMPLING)
    coordinator.collect(4)
    world.timeline.run(0.01)
    draws = sorted(coordinator.take_spans(), key=lambda span: span.begin)[1:]
    # The next are there already when the one before is done.
    assert [(span.begin, span.end) for span in draws] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert coordinator.counters().busy_seconds == 4
    coordinator.submit(listed(1), SAMPLING)
    world.timeline.run(10.0)
    assert coordinator.counters().busy_seconds == 5


@pytest.mark.parametrize(("prompts", "most"), [(42, 7), (1000, CPU_SEQUENCES // SAMPLING.count)])
def test_three_calls_share_what_an_actor_gets_but_one_asks_for_no_more_than_an_engine_decodes(prompts: int, most: int):
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(2, DEADLINE)
    coordinator.start()
    coordinator.generate(listed(prompts), SAMPLING)
    assert max(len(span.prompts) for span in coordinator.take_spans() if span.what == "draw") == most


def test_prompts_that_an_actor_died_over_are_drawn_alone():
    fates = iter(["well", "well", "well", "die"])
    world = World(Latency(), random.Random(1), lambda _: next(fates, "well"))
    coordinator = world.coordinator(2, DEADLINE)
    coordinator.start()
    coordinator.generate(listed(32), SAMPLING)
    draws = [span for span in coordinator.take_spans() if span.what == "draw"]
    (lost,) = [span for span in draws if span.lost]
    again = [span for span in draws if span.begin >= lost.end and set(span.prompts) & set(lost.prompts)]
    assert set(lost.prompts) == {name for span in again for name in span.prompts}
    for span in again:
        concurrent = [one for one in draws if one.who == span.who and one.begin < span.end and one.end > span.begin]
        assert concurrent == [span]


@pytest.mark.parametrize("others", [0, 400])
def test_an_actor_that_hangs_is_found_in_seconds_by_its_missing_progress(others: int):
    hangs = iter(["well", "well", "hang"])
    # The others report without pause; and a request may take far longer than an actor may be without progress.
    world = World(Latency(prompt=0.5), random.Random(1), lambda _: next(hangs, "well"))
    coordinator = world.coordinator(2, deadline=3600.0, stall=5.0)
    coordinator.start()
    coordinator.generate(listed(40 + others), SAMPLING)
    assert [round(seconds) for seconds in world.released] == [5]
    assert coordinator.counters().deaths == 1


def test_a_machine_that_stands_still_is_waited_for_and_no_prompt_is_blamed():
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(2, deadline=3600.0, stall=5.0)
    coordinator.start()
    world.still_until = world.timeline.now() + 60.0
    # Ended engines add to the load: each next wait is twice as long, so that few are ended.
    assert len(coordinator.generate(listed(8), SAMPLING)) == 8
    assert coordinator.counters().deaths <= 8
    # For a while afterwards, a pause that would have been too long before ends no engine.
    deaths, world.still_until = coordinator.counters().deaths, world.timeline.now() + 15.0
    coordinator.generate(listed(8), SAMPLING)
    assert coordinator.counters().deaths == deaths


def test_time_in_which_the_coordinator_did_not_run_makes_no_actor_late():
    world = World(Latency(prompt=1.0), random.Random(1))
    coordinator = world.coordinator(2, deadline=20.0, stall=5.0)
    coordinator.start()
    coordinator.submit(listed(8), SAMPLING)
    world.timeline.clear()
    # The machine was paused, and the first thing that runs again is the look for late actors.
    world.timeline.sleep(100.0)
    coordinator.expire()
    assert coordinator.counters().deaths == 0
    world.timeline.sleep(5.0)
    coordinator.expire()
    assert coordinator.counters().deaths == 2


def test_a_prompt_that_no_actor_survives_is_given_up_and_ends_nothing_else():
    world = World(Latency(), random.Random(1), is_deadly=lambda prompt: prompt.id == "q5")
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    coordinator.submit(listed(32), SAMPLING)
    groups = {group[0].id.prompt: group for group in coordinator.collect_all(32)}
    assert [name for name, group in groups.items() if group[0].given_up] == ["q5"]
    assert "rollout actors died over prompt q5: prompt q5: the actor was killed" in groups["q5"][0].failure
    # One for each halving of 32.
    assert coordinator.counters().deaths == 6
    # `generate`, which needs every answer, raises.
    with pytest.raises(EngineError, match="died over prompt q5"):
        coordinator.generate(listed(6)[4:], SAMPLING)


def test_an_actor_that_hangs_is_found_although_new_weights_wait_for_it():
    hangs = iter(["well", "hang"])
    world = World(Latency(), random.Random(1), lambda _: next(hangs, "well"))
    coordinator = world.coordinator(1, deadline=3600.0, swap_in_flight=True, stall=5.0)
    coordinator.start()
    coordinator.submit(listed(4), SAMPLING)
    coordinator.sync(weights_of(1), wait=False)
    coordinator.collect(4)
    assert [round(seconds) for seconds in world.released] == [5]


def test_samples_are_handed_over_when_they_are_finished_and_not_when_their_request_is():
    world = World(
        Latency(call=0.0, prompt=1.0, spread=0.0, long_tail=50.0), random.Random(1), is_long=lambda p: p.id == "q0"
    )
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    begun = world.timeline.now()
    coordinator.submit(listed(4), SAMPLING)
    assert [group[0].id.prompt for group in coordinator.collect(3)] == ["q1", "q2", "q3"]
    assert world.timeline.now() - begun == pytest.approx(4.0)
    assert [group[0].id.prompt for group in coordinator.collect(1, deadline=60.0)] == ["q0"]


def test_an_actor_without_the_weights_that_it_claims_is_replaced_before_it_draws():
    fates = iter(["well", "forget"])
    world = World(Latency(), random.Random(1), lambda _: next(fates, "well"))
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    coordinator.sync(weights_of(1), wait=True)
    drawn = coordinator.generate(listed(4), SAMPLING)
    assert {tuple(sample.weight_versions) for samples in drawn.values() for sample in samples} == {(1,)}
    assert coordinator.counters().deaths == 1


def test_a_sync_that_no_actor_takes_is_named():
    world = World(Latency(), random.Random(1), lambda call: "forget" if call == "pull" else "well")
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    with pytest.raises(EngineError, match=r"weights 1: the engine computes with others in all"):
        coordinator.sync(weights_of(1), wait=True)


def test_a_wait_ends_at_its_deadline_and_says_for_what():
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    begun = world.timeline.now()
    with pytest.raises(DeadlineError, match="waited 3 s for samples of 1 prompts; actors: ready"):
        coordinator.collect(1, deadline=3.0)
    assert world.timeline.now() - begun == pytest.approx(3.0)


def test_a_wait_goes_on_while_actors_make_progress_and_ends_without_it():
    # One prompt takes five times as long as a wait without progress may.
    world = World(Latency(call=0.0, prompt=10 * DEADLINE, spread=0.0), random.Random(1))
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    begun = world.timeline.now()
    assert len(coordinator.generate(listed(1), SAMPLING)) == 1
    assert world.timeline.now() - begun == pytest.approx(10 * DEADLINE)
    begun = world.timeline.now()
    with pytest.raises(DeadlineError, match="waited 40 s for samples of 1 prompts, the last 40 without progress"):
        coordinator.collect(1)
    assert world.timeline.now() - begun == pytest.approx(2 * DEADLINE, abs=1.5)


def test_actors_that_never_come_up_end_the_start_with_the_cause():
    world = World(Latency(), random.Random(1), lambda _: "die")
    with pytest.raises(EngineError, match="3 rollout actors in a row did not come up; the last: start: the actor was"):
        world.coordinator(2, DEADLINE).start()


def test_waits_on_a_closed_fleet_raise_an_error():
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    world.timeline.after(0.01, coordinator.close)
    with pytest.raises(EngineError, match="has been closed"):
        coordinator.generate(listed(1), SAMPLING)
    assert coordinator.states() == []


def synced(versions: int, seconds_each: float) -> int:
    """Makes one actor take so many versions, over each of which an engine dies first; returns the number of deaths."""
    pulls = itertools.count()
    world = World(
        Latency(), random.Random(1), lambda call: "die" if call == "pull" and next(pulls) % 2 == 0 else "well"
    )
    coordinator = world.coordinator(1, DEADLINE)
    coordinator.start()
    for version in range(1, versions + 1):
        coordinator.sync(weights_of(version), wait=True)
        world.timeline.run(seconds_each)
    return coordinator.counters().deaths


def test_engines_that_come_up_and_die_again_and_again_are_not_replaced_for_ever():
    with pytest.raises(
        EngineError, match="11 rollout actors of a fleet of 1 died within 60 minutes; the last: weights 11"
    ):
        synced(20, seconds_each=1.0)
    # As many deaths over a longer time are normal on a cluster whose machines are preempted.
    assert synced(20, seconds_each=600.0) == 20
