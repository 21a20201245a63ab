"""The stage goes on when its learner dies."""

import pytest

from actors.learner.remote import LearnerLostError
from cluster.errors import EngineError
from cluster.run.stages import Result
from pipelines.rlhf.stage import with_restarts


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_stage_is_resumed_when_its_learner_dies(deaths: int, capsys: pytest.CaptureFixture[str]) -> None:
    attempts: list[int] = []

    def work() -> Result:
        attempts.append(1)
        if len(attempts) <= deaths:
            raise LearnerLostError("an actor died before it gave the learner's step")
        return Result({"steps": 3})

    assert with_restarts(work, 3).metrics == {"steps": 3}
    assert len(attempts) == deaths + 1
    assert capsys.readouterr().err.count("started again from its last checkpoint") == deaths


def test_a_learner_that_dies_again_and_again_ends_the_stage() -> None:
    def work() -> Result:
        raise LearnerLostError("out of memory")

    with pytest.raises(LearnerLostError, match="the learner died 4 times; the last: out of memory"):
        with_restarts(work, 3)


def test_other_failures_end_the_stage_at_once() -> None:
    attempts: list[int] = []

    def work() -> Result:
        attempts.append(1)
        raise EngineError("3 rollout actors in a row did not come up")

    with pytest.raises(EngineError, match="in a row"):
        with_restarts(work, 3)
    assert attempts == [1]
