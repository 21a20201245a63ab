from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.run.fleet_control import fleet_control, request_resize, take_resize_request, write_fleet_state
from cluster.run.folder import RunFolder


def test_resize_requests_add_up_and_keep_one_actor(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match="no rlhf stage is running"):
        request_resize(run, 1)
    with run.lock(), fleet_control(run, actors=2):
        assert take_resize_request(run) is None
        assert request_resize(run, 1) == 3
        assert request_resize(run, 2) == 5
        with pytest.raises(UserError, match="at least 1"):
            request_resize(run, -5)
        assert take_resize_request(run) == 5
        # A request is taken once: it does not undo a later size of the fleet.
        assert take_resize_request(run) is None
        write_fleet_state(run, 1)
        assert request_resize(run, 1) == 2
    with pytest.raises(UserError, match="no rlhf stage is running"):
        request_resize(run, 1)


def test_the_state_of_a_killed_loop_is_not_live(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "fleet_state.json").write_text('{"actors": 2, "process": 1}')
    with run.lock(), pytest.raises(UserError, match="no rlhf stage is running"):
        request_resize(run, 1)
