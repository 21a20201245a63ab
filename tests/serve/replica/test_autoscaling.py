"""The number of replicas for a given load."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.recipe.serve import Serve
from serve.replica.autoscaling import REQUESTS, desired_replicas, replica_options


def test_a_fixed_number_is_not_scaled() -> None:
    assert replica_options(Serve()) == {"num_replicas": 1}
    assert replica_options(Serve(min_replicas=3, max_replicas=3)) == {"num_replicas": 3}


def test_a_range_is_ray_serves_to_keep_to() -> None:
    scaling = replica_options(Serve(min_replicas=0, max_replicas=4, target_requests=8, idle_seconds=60))
    found = scaling["autoscaling_config"]
    assert (found.min_replicas, found.initial_replicas, found.max_replicas) == (0, 1, 4)
    assert (found.target_ongoing_requests, found.downscale_delay_s) == (8, 60)
    assert found.policy.policy_function == "serve.replica.autoscaling.desired_replicas"


@pytest.mark.parametrize(
    ("counts", "wanted"), [({"a": 0.0}, 0), ({"a": 4.0}, 0.5), ({"a": 12.0, "b": 6.0}, 2.25), ({}, 2), (None, 2)]
)
def test_requests_decide_once_a_replica_counts_them(counts: dict[str, float] | None, wanted: float) -> None:
    metrics = None if counts is None else {REQUESTS: counts}
    context: Any = SimpleNamespace(
        aggregated_metrics=metrics, target_num_replicas=2, config=SimpleNamespace(target_ongoing_requests=8)
    )
    assert desired_replicas(context) == (wanted, {})
