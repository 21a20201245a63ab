"""How many actors keep the learner at work."""

from itertools import pairwise

import pytest

from actors.orchestrator.autoscaler import Scaler, advice


@pytest.mark.parametrize(
    ("learner_idle", "rollout_idle", "actors", "max_staleness", "said"),
    [
        # Two actors never wait, and the learner works 59 % of the time: 2 / 0.59 are needed.
        (0.41, 0.0, 2, 1, "the learner waited 41% of the time: add 2 rollout actors"),
        (0.5, 0.4, 2, 0, "the learner waited 50% of the time and the rollout actors 40%: rlhf.fleet.max_staleness=1"),
        (0.05, 0.75, 8, 1, "the rollout actors waited 75% of the time: 2 of 8 would do"),
        (0.05, 0.1, 2, 1, None),
    ],
)
def test_advice_is_what_would_balance_the_two_sides(
    learner_idle: float, rollout_idle: float, actors: int, max_staleness: int, said: str | None
):
    found = advice(learner_idle, rollout_idle, actors, max_staleness)
    assert (found is None) if said is None else (found or "").startswith(said)


def test_a_fleet_stays_within_its_bounds_and_does_not_count_steps_of_another_size():
    scaler, waiting = Scaler.of_rollouts(2, 3), {"learner_idle": 0.9, "rollout_idle": 0.0}
    assert [scaler.wanted(waiting, 2, True) for _ in range(4)] == [None] * 4
    assert scaler.wanted(waiting, 3, settled=False) is None
    assert [scaler.wanted(waiting, 2, True) for _ in range(5)] == [None] * 4 + [3]
    assert [scaler.wanted(waiting, 3, True) for _ in range(5)] == [None] * 5
    # Actors that somebody added by hand beyond the bounds are not removed.
    assert [scaler.wanted({"learner_idle": 0.0, "rollout_idle": 0.9}, 4, True) for _ in range(5)] == [None] * 5


@pytest.mark.parametrize(
    ("start", "work", "reached"), [(1, 2.0, 5), (8, 0.8, 2), (4, 1.7, 4), (1, 0.1, 1), (1, 99.0, 8)]
)
def test_so_many_reward_actors_that_a_step_waits_a_tenth_of_its_time(start: int, work: float, reached: int):
    # One actor needs `work` seconds for a step's rewards, and the rest of a step takes 4.
    scaler, sizes = Scaler.of_rewards(1, 8), [start]
    for _ in range(60):
        seconds = work / sizes[-1]
        wanted = scaler.wanted({"reward_seconds": seconds, "step_seconds": 4 + seconds}, sizes[-1], True)
        if wanted is not None:
            sizes.append(wanted)
    assert sizes[-1] == reached, sizes
    assert all(after <= 2 * before for before, after in pairwise(sizes))
