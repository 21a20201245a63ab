"""The loop of RLHF over rollout actors that exist only in simulated time."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from actors.orchestrator.autoscaler import Scaler
from actors.orchestrator.coordination.coordinator import Coordinator
from actors.orchestrator.coordination.members import WORKING, ActorState
from actors.orchestrator.coordination.work_queue import MAX_PATIENCE
from actors.orchestrator.ledger import Ledger
from actors.orchestrator.loop import RlhfLoop
from actors.orchestrator.scheduler import RolloutScheduler
from actors.types import Failure, Prompt, PromptTurn, Sample, Verdict
from cluster.errors import StageError
from cluster.trace import Span
from infra.bench.loops.simulation import Call, Fate, Latency, World, weights_of
from tests.actors.orchestrator.simulated import LOOKS, KilledError, Learner, Rewards
from tests.helpers import rlhf

DEADLINE = 20.0
STEPS = 12
PROMPTS = [Prompt(f"p{i}", [1]) for i in range(40)]
# How often an actor dies or hangs in a call of each kind, or reports weights that it has not loaded.
DEATHS: dict[Call, float] = {"start": 0.08, "pull": 0.03, "generate": 0.03}
HANGS: dict[Call, float] = {"start": 0.03, "pull": 0.01, "generate": 0.02}
FORGETS: dict[Call, float] = {"start": 0.0, "pull": 0.01, "generate": 0.0}


def loop_of(
    world: World,
    coordinator: Coordinator,
    learner: Learner,
    score: Callable[..., Any],
    count: int = len(PROMPTS),
    reward_seconds: float = 0.0,
) -> RlhfLoop:
    now = world.timeline.now
    prompts = {name: Prompt(name, [1]) for name in (f"p{i}" for i in range(count))}
    ledger = Ledger(prompts.values(), seed=1)

    def ask(prompts: list[Prompt], groups: list[list[Sample]]) -> Rewards:
        return Rewards(world, now() + reward_seconds, partial(score, prompts, groups))

    scheduler = RolloutScheduler(coordinator, ledger, prompts, learner.settings, 1, ask, now)
    return RlhfLoop(coordinator, learner, scheduler, learner.settings, now)


def rewarded(prompts: list[Prompt], groups: list[list[Sample]]) -> list[list[float]]:
    return [[1.0 + sample.id.sample for sample in group] for group in groups]


def survive(seed: int) -> Counter[str]:
    """Trains through one random schedule of faults: actors that die or hang in any call, or take no weights, that join
    and leave, verdicts that fail, and a driver or learner that is killed anywhere and goes on from its checkpoint.
    Returns the faults."""
    choose = random.Random(seed)
    settings = rlhf(
        prompts_per_step=choose.randint(1, 8),
        samples_per_prompt=choose.choice([2, 3]),
        max_staleness=choose.choice([0, 0, 1, 2]),
        max_failed_verdicts=1.0,
    )
    unjudged = choose.choice([0.0, 0.05, 0.2])
    seen: Counter[str] = Counter()

    def fate(call: Call) -> Fate:
        odds = (DEATHS[call], HANGS[call], FORGETS[call])
        found: Fate = choose.choices(("die", "hang", "forget", "well"), (*odds, 1 - sum(odds)))[0]
        seen[f"{found} in {call}"] += 1
        return found

    def score(prompts: list[Prompt], groups: list[list[Sample]]) -> list[list[Verdict]]:
        if choose.random() < 0.02:
            raise KilledError
        return [
            [
                Failure("it raised") if sample.given_up or choose.random() < unjudged else reward
                for sample, reward in zip(group, row, strict=True)
            ]
            for group, row in zip(groups, rewarded(prompts, groups), strict=True)
        ]

    world = World(Latency(spread=0.5), choose, fate)
    learner = Learner(world, settings, choose.uniform(0.1, 2.0), killed=lambda: choose.random() < 0.02)
    step, lives = 0, 0
    while step < STEPS:
        lives += 1
        assert lives < 200
        target = choose.randint(1, 5)
        swap_in_flight = settings.fleet.max_staleness > 0 and choose.random() < 0.5
        coordinator = world.coordinator(target, DEADLINE, swap_in_flight)

        def anything(coordinator: Coordinator = coordinator) -> None:
            if choose.random() < 0.2:
                coordinator.resize(choose.randint(1, 5))
            if choose.random() < 0.01:
                raise KilledError
            world.timeline.after(choose.expovariate(0.5), anything)

        world.timeline.after(choose.expovariate(0.5), anything)
        state = learner.restore()
        begun = world.timeline.now()
        try:
            coordinator.start()
            loop = loop_of(world, coordinator, learner, score, reward_seconds=choose.choice([0.0, 0.5]))
            if state:
                loop.scheduler.ledger.load_state_dict(state["ledger"])
                coordinator.sync(weights_of(state["step"]), wait=True)
            for step in range(state["step"] if state else 0, STEPS):
                begun = world.timeline.now()
                loop.step(step)
                if (step + 1) % 3 == 0 or step + 1 == STEPS:
                    loop.save(step + 1)
            step = STEPS
        except (KilledError, StageError) as error:
            seen[type(error).__name__] += 1
            step = 0
        # A step waits for samples, the learner and a sync; each sample may be drawn again once for a dead actor.
        assert world.timeline.now() - begun <= 3 * 2 * MAX_PATIENCE * DEADLINE + learner.seconds + 1
        world.timeline.clear()
        coordinator.close()
        world.hung.clear()
    trained = Counter(learner.trained)
    assert loop.scheduler.ledger.outcomes["trained"] == len(learner.trained) == STEPS * settings.prompts_per_step
    # Turns that were handed out and have no outcome are in flight: none is forgotten.
    assert loop.scheduler.ledger.outstanding == list(loop.scheduler.inflight)
    # Counted with the turns still to come in the epochs begun, every prompt is handed out once an epoch.
    ledger = Ledger(PROMPTS, seed=1)
    ledger.load_state_dict(loop.scheduler.ledger.state_dict())
    epochs = 1 + ledger.state_dict()["epoch"]
    while (turn := ledger.take(1)[0]).epoch < epochs:
        trained[turn] += 1
    failed = loop.scheduler.ledger.outcomes["failed"]
    seen["failed prompts"] += failed
    assert trained.total() + failed == epochs * len(PROMPTS)
    assert trained.keys() <= {PromptTurn(epoch, prompt.id) for epoch in range(epochs) for prompt in PROMPTS}
    assert set(trained.values()) == {1}
    counts = loop.scheduler.ledger.verdicts
    samples = settings.sampling.samples_per_prompt
    assert counts.failed == 0 or unjudged
    assert counts.given >= samples * (len(learner.trained) + 3 * failed)
    # The wait for an actor that hangs grows where many hang in a short time.
    assert all(seconds <= MAX_PATIENCE * DEADLINE + 1 for seconds in world.released)
    soon = sum(seconds <= DEADLINE + 1 for seconds in world.released)
    return seen + Counter(released=len(world.released), soon=soon, lives=lives)


@pytest.mark.slow
def test_under_random_failures_every_prompt_is_trained_once_and_every_batch_is_full():
    found: Counter[str] = sum(map(survive, range(200)), Counter())
    assert all(found[f"{fate} in {call}"] > 50 for fate in ("die", "hang") for call in DEATHS), found
    assert found["forget in pull"] > 50
    assert found["failed prompts"] > 10
    assert found["released"] > 200
    assert found["soon"] > 0.8 * found["released"]
    assert found["lives"] > 400
    # Few runs of bad luck are too long to wait for, or kill actor after actor.
    assert found["DeadlineError"] + found["EngineError"] < 0.05 * found["lives"], found


def rate_and_idle(
    actors: int, max_staleness: int, learner_seconds: float, reward_seconds: float = 0.0
) -> tuple[float, float]:
    """Returns prompts a second of the loop, and the learner's idle share, with 16 prompts a step for every actor."""
    settings = rlhf(prompts_per_step=16 * actors, samples_per_prompt=2, max_staleness=max_staleness)
    world = World(Latency(), random.Random(1))
    coordinator = world.coordinator(actors, DEADLINE)
    coordinator.start()
    learner = Learner(world, settings, learner_seconds)
    loop = loop_of(world, coordinator, learner, rewarded, 64 * actors, reward_seconds)
    loop.step(0)
    begun = world.timeline.now()
    rows = [loop.step(step) for step in range(1, 21)]
    seconds = world.timeline.now() - begun
    return 20 * 16 * actors / seconds, sum(row["learner_idle"] for row in rows) / 20


@pytest.mark.slow
def test_64_actors_do_almost_64_times_the_work_of_one():
    # Balanced: an actor needs 0.42 s for its share of a batch and 0.1 s to reload.
    one, _ = rate_and_idle(1, max_staleness=1, learner_seconds=0.55)
    many, idle = rate_and_idle(64, max_staleness=1, learner_seconds=0.55)
    assert many / one > 0.95 * 64
    assert idle < 0.1


def test_overlap_is_faster_than_waiting_for_each_other():
    synchronous, _ = rate_and_idle(8, max_staleness=0, learner_seconds=0.5)
    overlapping, _ = rate_and_idle(8, max_staleness=1, learner_seconds=0.5)
    assert overlapping > 1.5 * synchronous


def test_rewards_are_given_while_others_are_drawn_and_learned_from():
    learner_seconds, reward_seconds = 0.65, 0.5
    without, _ = rate_and_idle(8, max_staleness=2, learner_seconds=learner_seconds)
    rate, idle = rate_and_idle(8, max_staleness=2, learner_seconds=learner_seconds, reward_seconds=reward_seconds)
    assert rate > 0.95 * without
    assert idle < 0.1


def test_a_joiner_works_with_the_current_weights_in_the_step_after_it_is_up():
    settings = rlhf(prompts_per_step=16, samples_per_prompt=2)
    world = World(Latency(start=2.0, call=0.0), random.Random(1))
    coordinator = world.coordinator(2, DEADLINE)
    coordinator.start()
    loop = loop_of(world, coordinator, Learner(world, settings, 0.5), rewarded)
    before = [loop.step(step)["rollout_seconds"] for step in range(3)][-1]
    coordinator.resize(4)
    world.timeline.run(2.0 + 0.1 + 0.01)
    assert coordinator.states() == [ActorState.READY] * 4
    assert {worker.version for worker in coordinator.ready()} == {3}
    assert loop.step(3)["rollout_seconds"] < 0.7 * before


def test_the_trace_of_a_step_has_the_work_of_each_actor_and_the_way_of_each_prompt():
    # The second of two actors dies in its first call; another takes its place and its prompts.
    fates = iter(["well", "well", "well", "die"])
    settings = rlhf(prompts_per_step=8, samples_per_prompt=2, max_staleness=1)
    world = World(Latency(), random.Random(1), lambda _: next(fates, "well"))
    coordinator = world.coordinator(2, DEADLINE)
    coordinator.start()
    loop = loop_of(world, coordinator, Learner(world, settings, 0.5), rewarded, reward_seconds=0.2)
    traces = []
    for step in range(6):
        figures = loop.step(step, {"known": 0.25})
        assert figures["known"] == 0.25
        assert figures["prompts_waiting"] == loop.trace.waiting == len(loop.scheduler.inflight)
        traces.append(loop.trace)
    draws = [span for trace in traces for span in trace.spans if span.what == "draw"]
    (lost,) = [span for span in draws if span.lost]
    again = [span for span in draws if set(span.prompts) & set(lost.prompts) and not span.lost]
    assert lost.who == "rollout 1"
    assert sorted(name for span in again for name in span.prompts) == sorted(lost.prompts)
    assert all(span.begin >= lost.end for span in again)
    drawn = {name: span for span in draws if not span.lost for name in span.prompts}
    given: dict[str, Span] = {}
    for trace, before in zip(traces, [None, *traces], strict=False):
        assert before is None or before.end <= trace.begin
        learn, publish = (next(s for s in trace.spans if s.what == what) for what in ("learn", "publish"))
        names = [handed.id for handed in trace.prompts]
        assert list(learn.prompts) == names
        given |= {name: span for span in trace.spans if span.what == "reward" for name in span.prompts}
        assert (learn.end - learn.begin, publish.end) == (pytest.approx(0.5), pytest.approx(trace.end))
        for handed in trace.prompts:
            span = drawn[handed.id]
            # Each prompt is handed out when it is finished, and not when its request is.
            assert handed.given <= span.begin < handed.handed_out <= learn.begin + 1e-9
            assert handed.handed_out == given[handed.id].begin
            assert given[handed.id].end <= learn.begin + 1e-9
            assert given[handed.id].end - given[handed.id].begin > 0.2 - 1e-9
            assert (handed.tokens, 0 <= handed.behind <= 1) == (2, True)
    # While the learner learns they are looked for often.
    assert min(span.end - span.begin for span in given.values()) < 0.2 + 0.5 / LOOKS
    world.timeline.run(10.0)
    assert coordinator.counters().tokens == sum(span.tokens for span in draws + coordinator.take_spans())
    assert {actor.who for actor in traces[-1].actors} == {"rollout 0", "rollout 2"}
    assert {actor.version for actor in traces[-1].actors} <= {5, 6}
    assert any(handed.behind for trace in traces for handed in trace.prompts)


@pytest.mark.parametrize(("start", "learner_seconds", "balanced"), [(1, 0.6, 8), (8, 4.0, 2), (4, 1.1, 4)])
def test_a_fleet_sizes_itself_to_the_learner(start: int, learner_seconds: float, balanced: int):
    # An actor needs 0.2 s a prompt in 24 prompts a step: 4.8 s of work and 0.1 s a call.
    settings = rlhf(prompts_per_step=24, samples_per_prompt=2, max_staleness=1, steps=60)
    world = World(Latency(call=0.0, prompt=0.2, pull=0.0, spread=0.0), random.Random(1))
    coordinator = world.coordinator(start, DEADLINE)
    coordinator.start()
    loop = loop_of(world, coordinator, Learner(world, settings, learner_seconds), rewarded)
    scaler, sizes = Scaler.of_rollouts(1, 16), [start]
    for step in range(60):
        figures, states = loop.step(step), coordinator.states()
        wanted = scaler.wanted(figures, len(states), WORKING.issuperset(states))
        if wanted is not None:
            coordinator.resize(wanted)
            sizes.append(wanted)
    assert abs(sizes[-1] - balanced) <= 1 + balanced // 4, sizes
    assert len(sizes) <= 6
    assert all(after <= 2 * before for before, after in pairwise(sizes))
