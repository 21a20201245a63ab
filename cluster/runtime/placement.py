"""Waits until a cluster has room for the processes of a stage, and says which of them fits nowhere."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from cluster.compat import free_per_node
from cluster.errors import DeadlineError
from cluster.runtime.plan import Allocation

# After so many seconds without room, a line names the processes that wait.
NOTICE_SECONDS = 5.0

Bundle = Mapping[str, float]


def bundle(allocation: Allocation) -> dict[str, float]:
    """Returns the resources that Ray is asked for on behalf of a process."""
    shares = {"CPU": allocation.cpus, "GPU": allocation.gpus}
    return {name: share for name, share in shares.items() if share}


def wait_for_room(wanted: Mapping[str, tuple[Allocation, int]], seconds: float) -> None:
    """Waits until all processes of a stage fit on the cluster at once, and releases the reserved resources for them to
    take.

    An autoscaler starts nodes for processes without room. A process that needs no resources is left out.

    Args:
        wanted: the share of each kind of process, and how many there are, by the name of the kind.
        seconds: the longest wait.

    Raises:
        DeadlineError: there was no room within `seconds`; the message says for what, and what the nodes have.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    kinds = _bundles(wanted)
    bundles = [shape for shape, count in kinds.values() for _ in range(count) if shape]
    if not bundles:
        return
    group = placement_group(bundles)
    try:
        if group.wait(min(NOTICE_SECONDS, seconds)):
            return
        short = current_shortage(wanted)
        print(f"triptych: waiting up to {seconds / 60:g} minutes for room: {short}", file=sys.stderr, flush=True)
        if not group.wait(max(0.0, seconds - NOTICE_SECONDS)):
            raise DeadlineError(f"waited {seconds:.0f} s for room: {current_shortage(wanted)}")
    finally:
        remove_placement_group(group)


def current_shortage(wanted: Mapping[str, tuple[Allocation, int]]) -> str:
    """Names the processes that fit on no node of the connected cluster, or else the free resources of its nodes."""
    return shortage(_bundles(wanted), *_nodes())


def shortage(kinds: Mapping[str, tuple[Bundle, int]], total: Sequence[Bundle], free: Sequence[Bundle]) -> str:
    """Names the processes that fit on no node, or else the free resources.

    Args:
        kinds: the resources of each kind of process and their number, by name.
        total: the resources of each node.
        free: what each node has left.
    """
    for name, (shape, _) in kinds.items():
        if shape and not any(_fits(shape, node) for node in total):
            return f"a {name} needs {_shown(shape)} on one node, and the nodes have {_listed(total)}"
    needs = ", ".join(f"{count} × {name} of {_shown(shape)}" for name, (shape, count) in kinds.items() if shape)
    return f"{needs}; of {_listed(total)} others hold all but {_listed(free)}"


def _bundles(wanted: Mapping[str, tuple[Allocation, int]]) -> dict[str, tuple[Bundle, int]]:
    return {name: (bundle(share), count) for name, (share, count) in wanted.items()}


def _nodes() -> tuple[list[Bundle], list[Bundle]]:
    """Returns the resources of each live node, and the free ones among them."""
    import ray

    alive, left = [node for node in ray.nodes() if node["Alive"]], free_per_node()
    return [node["Resources"] for node in alive], [left.get(node["NodeID"], {}) for node in alive]


def _fits(shape: Bundle, node: Bundle) -> bool:
    return all(node.get(name, 0) + 1e-9 >= share for name, share in shape.items())


def _shown(shape: Bundle) -> str:
    names = {"CPU": "CPUs", "GPU": "GPUs"}
    return " and ".join(f"{share:g} {names[name]}" for name, share in shape.items() if name in names) or "nothing"


def _listed(nodes: Sequence[Bundle]) -> str:
    kinds = Counter(_shown({name: node.get(name, 0) for name in ("CPU", "GPU")}) for node in nodes)
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common()) or "no node"
