"""Room for the processes of a stage, node by node."""

import time
from pathlib import Path

import pytest
import ray

from cluster.errors import DeadlineError
from cluster.recipe.loading import load_recipe
from cluster.runtime.cgroup import cpu_limit, free_memory
from cluster.runtime.network import interface_of
from cluster.runtime.placement import shortage, wait_for_room
from cluster.runtime.plan import Allocation, Node, Resources, make_plan


def machines(*nodes: Node) -> Resources:
    """Returns a cluster of nodes, with memory for everything."""
    cores = max(node.cpus for node in nodes)
    return Resources(sum(n.cpus for n in nodes), int(cores), sum(n.gpus for n in nodes), 1000, 80, nodes)


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        # Two thirds of a node of two cores each: not 4/3 of a core, of which each node holds one.
        ([Node(2), Node(2)], 3, 1.0),
        ([Node(4), Node(4)], 3, 2.0),
        ([Node(8), Node(2)], 3, 2.66),
        # The head has cores and no GPU.
        ([Node(64), Node(8, 4), Node(8, 4)], 8, 2.0),
        ([Node(16, 8)], 8, 2.0),
    ],
)
def test_every_worker_fits_on_some_node(recipe_path: Path, nodes: list[Node], workers: int, share: float) -> None:
    overrides = [f"{stage}.workers={workers}" for stage in ("pretrain", "sft", "reward")]
    plan = make_plan(load_recipe(recipe_path, overrides), machines(*nodes))
    assert plan.trainer.cpus == share
    assert sum(node.places(plan.trainer.cpus, plan.trainer.gpus) for node in nodes) >= workers


@pytest.mark.parametrize("nodes", [[Node(2), Node(2)], [Node(1)] * 5, [Node(32), Node(4, 2), Node(4, 2)]])
@pytest.mark.parametrize("actors", [1, 2, 5])
def test_all_actors_fit_on_half_of_every_node(recipe_path: Path, nodes: list[Node], actors: int) -> None:
    recipe = load_recipe(recipe_path, [f"rlhf.fleet.rollout_actors={actors}"])
    share = make_plan(recipe, machines(*nodes)).rollout
    assert share.cpus > 0
    room = sum(Node(node.cpus / 2, node.gpus).places(share.cpus, share.gpus) for node in nodes)
    assert room >= recipe.rlhf.actors


def test_a_quota_is_a_part_of_a_cluster_or_asks_for_more(recipe_path: Path) -> None:
    nodes = machines(Node(8), Node(8))
    part = make_plan(load_recipe(recipe_path, ["cluster.cpus=4"]), nodes)
    assert (part.cpus, part.trainer.cpus) == (4, 4.0)
    # An autoscaler has yet to start the nodes with GPUs: their memory is not known, and not short.
    asked = make_plan(load_recipe(recipe_path, ["cluster.gpus=8", "sft.workers=8"]), nodes)
    assert (asked.gpus, asked.trainer.gpus, asked.trainer.cpus) == (8, 1.0, 2.0)


def test_the_process_that_fits_nowhere_is_named() -> None:
    nodes = [{"CPU": 2.0, "memory": 1.0}, {"CPU": 2.0}]
    kinds = {"reward actor": ({"CPU": 1.0}, 1), "worker of sft": ({"CPU": 2.5, "GPU": 1.0}, 2)}
    said = "a worker of sft needs 2.5 CPUs and 1 GPUs on one node, and the nodes have 2 × 2 CPUs and 0 GPUs"
    assert shortage(kinds, nodes, nodes) == said
    busy = shortage({"worker of sft": ({"CPU": 2.0}, 2)}, nodes, [{"CPU": 2.0}, {}])
    assert busy.startswith("2 × worker of sft of 2 CPUs; of 2 × 2 CPUs and 0 GPUs others hold all but 1 × 2 CPUs")


def test_a_wait_for_room_ends_at_its_deadline_and_lets_go(ray_session: None) -> None:
    wait_for_room({"trainer": (Allocation(1.0, 0, 1), 2), "function": (Allocation(0, 0, 1), 3)}, 30)
    with pytest.raises(DeadlineError, match=r"waited 1 s for room: a trainer needs 3 CPUs on one node"):
        wait_for_room({"trainer": (Allocation(3.0, 0, 1), 1)}, 0.6)
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert ray.available_resources()["CPU"] == 2


def test_the_limits_of_a_container_are_those_of_its_group_and_of_the_ones_around_it(tmp_path: Path) -> None:
    own, inner = tmp_path / "own", tmp_path / "pod" / "main"
    inner.mkdir(parents=True)
    own.write_text("0::/pod/main\n")
    assert cpu_limit(tmp_path, own) is None
    assert free_memory(tmp_path, own) is None
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text("250000 100000\n")
    assert cpu_limit(tmp_path, own) == 2.5
    for name, text in {"max": "1000", "current": "700", "stat": "anon 1\ninactive_file 200\n"}.items():
        (inner / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path, own) == 500
    # Version 1, each controller in a tree of its own.
    own.write_text("4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n")
    for name, text in {
        "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "150000",
        "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
        "memory/docker/a/memory.limit_in_bytes": "4096",
        "memory/docker/a/memory.usage_in_bytes": "96",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path, own) == 1.5
    assert free_memory(tmp_path, own) == 4000


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
