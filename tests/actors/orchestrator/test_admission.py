"""Admission of finished samples to a step, so that none becomes too stale."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from actors.orchestrator.admission import Finished
from infra.bench.loops.coordinator import run_long
from infra.bench.loops.simulation import Latency


@dataclass(frozen=True)
class OwnGroup:
    version: int
    name: int = 0


def test_the_oldest_are_trained_on_first_and_of_one_version_those_that_finished_first():
    finished: Finished[OwnGroup] = Finished()
    for version, name in ((2, 0), (1, 1), (2, 2), (0, 3), (1, 4)):
        finished.add(OwnGroup(version, name))
    assert [group.name for group in finished.take(3)] == [3, 1, 4]
    assert [group.name for group in finished.take(2)] == [0, 2]


def test_a_step_waits_for_answers_for_which_the_next_would_be_too_late():
    finished: Finished[OwnGroup] = Finished()
    for _ in range(4):
        finished.add(OwnGroup(7))
    settings = {"version": 7, "staleness": 1, "batch": 4}
    assert finished.may_train(4, begun={7: 4}, **settings)
    # Without waiting, the late ones would be due in the next step together with its own four.
    assert not finished.may_train(4, begun={7: 5}, **settings)
    # The oldest group is due now.
    assert not finished.may_train(4, begun={6: 1, 7: 3}, **settings)
    assert not finished.may_train(5, begun={}, **settings)


@pytest.mark.parametrize("seed", range(30))
def test_no_group_becomes_too_stale_in_any_order_of_finishing(seed: int):
    """A loop in which any prompt may take any time, with at most (staleness + 1) batches in work."""
    choose = random.Random(seed)
    staleness, batch = choose.randint(0, 4), choose.randint(1, 6)
    finished: Finished[OwnGroup] = Finished()
    open_versions: list[int] = []
    for version in range(60):
        while True:
            room = (staleness + 1) * batch - len(open_versions) - len(finished)
            open_versions += [version] * choose.randint(0, room)
            if finished.may_train(batch, version, staleness, batch, Counter(open_versions)):
                break
            if open_versions and choose.random() < 0.5:
                finished.add(OwnGroup(open_versions.pop(choose.randrange(len(open_versions)))))
        assert all(version - group.version <= staleness for group in finished.take(batch))


def test_every_sample_is_trained_on_and_long_answers_as_often_as_they_are_sampled():
    # A long answer takes twice as long as a step of the learner.
    found = run_long(Latency(long_factor=4, long_tail=1.0), prompts_an_actor=4, learner_seconds=0.5)
    assert found.discarded == 0
    assert found.learned == pytest.approx(found.given, rel=0.1)
    # Before, where 577 of 805 long answers were discarded: 59.9.
    assert found.rate > 60
