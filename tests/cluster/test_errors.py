import errno
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors import SafetensorError

from cluster.errors import DeadlineError, StageError, UserError, known_failure, wait_for


def fail(*_: Any) -> Any:
    raise UserError("line 7 of text.jsonl is not JSON")


class FailsToStart:
    def __init__(self) -> None:
        fail()

    def ready(self) -> None:
        """Never answers."""


def by_task() -> None:
    ray.get(ray.remote(fail).remote(), timeout=180)


def by_actor() -> None:
    ray.get(ray.remote(FailsToStart).remote().ready.remote(), timeout=180)


def by_data() -> None:
    from ray.data import range as ray_range

    ray_range(4).map_batches(fail).materialize()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("way", [by_task, by_actor, by_data])
def test_a_user_error_is_found_however_ray_carries_it(way: Any) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Ray's classes differ; what is behind them is asserted)
        way()
    failure = known_failure(caught.value)
    assert isinstance(failure, UserError)
    assert str(failure) == "line 7 of text.jsonl is not JSON"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_user_error_in_a_train_worker_is_found(tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig

    # TorchTrainer without PyTorch, which controller and worker would import.
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5})
    trainer = DataParallelTrainer(fail, scaling_config=scaling, run_config=RunConfig(storage_path=str(tmp_path)))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        trainer.fit()
    assert str(known_failure(caught.value)) == "line 7 of text.jsonl is not JSON"


def test_other_errors_are_not_known() -> None:
    assert known_failure(ValueError("cluster.errors.UserError: not raised by Ray")) is None


def fill() -> None:
    Path("/dev/full").write_text("words")


def fill_in_safetensors() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("way", [fill, fill_in_safetensors])
def test_a_full_disk_is_reported_in_one_line(way: Any) -> None:
    with pytest.raises((OSError, SafetensorError)) as caught:
        way()
    failure = known_failure(caught.value)
    assert type(failure) is StageError
    assert "No space left on device" in str(failure)
    assert str(failure).endswith("free some, and the same command goes on")
    assert "\n" not in str(failure)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_wait_names_what_it_waited_for() -> None:
    @ray.remote
    def sleep() -> None:
        import time

        time.sleep(5)

    with pytest.raises(DeadlineError, match="the sleeper"):
        wait_for(sleep.remote(), 0.1, "the sleeper")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_wait_calls_meanwhile_until_the_result_or_the_deadline() -> None:
    @ray.remote
    def sleep(seconds: float) -> float:
        import time

        time.sleep(seconds)
        return seconds

    seen: list[int] = []
    assert wait_for([sleep.remote(0.0), sleep.remote(1.0)], 60, "the sleepers", lambda: seen.append(1)) == [0.0, 1.0]
    assert len(seen) > 1
    with pytest.raises(DeadlineError, match="waited 1 s for the sleeper"):
        wait_for(sleep.remote(20.0), 1.0, "the sleeper", lambda: seen.append(2))
    assert seen.count(2) > 1


def test_processes_of_ray_that_start_too_slowly_are_one_line() -> None:
    source = inspect.getsource(ray._private.node)
    raised = re.search(r'raise Exception\(\s+("The current node[^)]+")', source)
    assert raised, "Ray raises something else now: see is_node_timeout"
    failure = known_failure(Exception(" ".join(re.findall('"(.+?)"', raised[1]))))
    assert isinstance(failure, DeadlineError)
    assert "the same command tries again" in str(failure)


def test_what_a_user_may_not_do_is_one_line_with_its_place() -> None:
    failure = known_failure(PermissionError(errno.EACCES, "Permission denied", "/shared/run"))
    assert str(failure) == "/shared/run: Permission denied: change its permissions, or name another place"
