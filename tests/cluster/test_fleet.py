from pathlib import Path

import pytest

from cluster.failures import UserError
from cluster.fleet import change_fleet, fleet_control, wanted_actors
from cluster.run import RunFolder


def test_wishes_add_up_and_one_actor_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="no rlhf stage is running"):
        change_fleet(run, 1)
    with run.lock(), fleet_control(run, actors=2):
        assert wanted_actors(run) is None
        assert change_fleet(run, 1) == 3
        assert change_fleet(run, 2) == 5
        assert wanted_actors(run) == 5
        with pytest.raises(UserError, match="at least 1"):
            change_fleet(run, -5)
        assert wanted_actors(run) == 5
    with pytest.raises(UserError, match="no rlhf stage is running"):
        change_fleet(run, 1)


def test_the_state_of_a_killed_loop_is_not_live(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "fleet_state.json").write_text('{"actors": 2, "process": 1}')
    with run.lock(), pytest.raises(UserError, match="no rlhf stage is running"):
        change_fleet(run, 1)
