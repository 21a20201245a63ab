"""The shares of every process in the machine's cores, GPUs and memory, decided before anything starts."""

import math
import os
from collections import Counter
from dataclasses import dataclass, replace

import psutil

from cluster.errors import UserError
from cluster.recipe.model import Cluster
from cluster.recipe.recipe import Recipe
from cluster.runtime.cgroup import cpu_limit, free_memory
from cluster.runtime.gpus import gpu_memory_gb
from cluster.runtime.machine_memory import memory_needs
from cluster.runtime.memory import (
    GB,
    parameters,
    served_models,
    trainings,
)
from cluster.runtime.rlhf_memory import shortage
from cluster.runtime.training_memory import training_advice, training_memory

# More processes than any machine has room for.
MANY = 1 << 20


@dataclass(frozen=True)
class Allocation:
    """The share of one worker or actor: Ray's logical CPUs and GPUs, and the threads that torch may use.

    An engine may have several workers, processes of its own on its node that divide the model and the share.
    """

    cpus: float
    gpus: float
    threads: int
    workers: int = 1


@dataclass(frozen=True)
class Plan:
    """The resources of a run, and the share of each kind of process.

    The shares of one stage can all be scheduled at once, with room for tasks beside them.
    """

    cpus: float
    gpus: float
    memory_gb: float
    trainer: Allocation
    rollout: Allocation
    reward: Allocation
    learner: Allocation
    replica: Allocation


@dataclass(frozen=True)
class Node:
    """One machine of a cluster: its cores and GPUs. A process runs on one of them and cannot be divided."""

    cpus: float
    gpus: float = 0

    def places(self, cpus: float, gpus: float) -> int:
        """Counts the processes with these shares that it has room for at once."""
        by_cpus = math.floor(self.cpus / cpus + 1e-9) if cpus else MANY
        if not gpus:
            return by_cpus
        # A share of less than one GPU lies on a single one.
        by_gpus = self.gpus * math.floor(1 / gpus + 1e-9) if gpus <= 1 else self.gpus / gpus
        return min(by_cpus, math.floor(by_gpus + 1e-9))


@dataclass(frozen=True)
class Resources:
    """The resources of a machine or cluster.

    Attributes:
        cpus: cores of all machines together.
        cores: cores of the largest machine.
        gpus: GPUs of all machines together.
        memory_gb: free memory, in 1e9 bytes.
        gpu_memory_gb: memory of the smallest GPU, in 1e9 bytes, or None if unknown.
        nodes: the machines; empty for a single one with all the cores and GPUs, or where they are not known.
    """

    cpus: float
    cores: int
    gpus: float
    memory_gb: float
    gpu_memory_gb: float | None = None
    nodes: tuple[Node, ...] = ()


def make_plan(recipe: Recipe, resources: Resources | None = None) -> Plan:
    """Divides the resources of the connected Ray cluster, or those given, among the processes of a run.

    On a CPU the logical shares of rollouts, reward and learner add up to half of the machine, so that a fleet can grow
    and tasks run beside it. The cores are used by threads: rollout actors and learner take turns with all of them, or
    have half of them each where `rlhf.fleet.max_staleness` lets them work at the same time. Each process gets a GPU of
    its own while there are enough; else as many as necessary share one.

    Args:
        recipe: the recipe.
        resources: the resources, or None for those of the connected cluster.

    Raises:
        UserError: the run does not fit; the message says what is short and what to do.
    """
    found = within_limits(resources or connected_resources(), recipe.cluster)
    workers = max(section.workers for section in trainings(recipe).values())
    actors = recipe.rlhf.fleet.rollout_limit
    _check_counts(recipe, found)
    _check_memory(recipe, found)
    trainer_gpus = min(1.0, found.gpus)
    devices, engine = recipe.rlhf.devices, recipe.rlhf.fleet.tensor_parallel
    actor_gpus = _gpu_share(found.gpus, devices)
    trainer_cpus = _cpu_share(found, workers, trainer_gpus)
    actor_cpus = _cpu_share(found, devices, actor_gpus, part=0.5)
    _check_engines(recipe, found, actor_cpus, actor_gpus)
    if not trainer_cpus or not actor_cpus:
        largest = max(trainings(recipe).items(), key=lambda item: item[1].workers)[0]
        name, count = (f"{largest}.workers", workers) if not trainer_cpus else ("rlhf.fleet", devices)
        raise UserError(
            f"{name}: {count} processes, each with its share of GPUs and cores on one node, do not fit on "
            f"{_shown(found.nodes or (Node(found.cpus, found.gpus),))}: set fewer"
        )
    rewards, learners = max(1, recipe.rlhf.reward_models), recipe.rlhf.fleet.learner_workers
    # Threads that outnumber the cores wait for each other at every operation.
    sides = 2 if recipe.rlhf.fleet.max_staleness and not found.gpus else 1
    replicas = served_models(recipe) * recipe.serve.max_replicas
    replica_gpus = _gpu_share(found.gpus, replicas)
    # Where GPUs are few, replicas that do not fit wait for others to end.
    replica_cpus = _cpu_share(found, replicas, replica_gpus, part=0.5) or _cpu_share(found, replicas, 0, part=0.5)

    def threads(processes: int) -> int:
        return max(1, min(found.cores, int(found.cpus // processes)))

    return Plan(
        cpus=found.cpus,
        gpus=found.gpus,
        memory_gb=found.memory_gb,
        trainer=Allocation(trainer_cpus, trainer_gpus, min(threads(workers), max(1, math.ceil(trainer_cpus)))),
        rollout=Allocation(engine * actor_cpus, engine * actor_gpus, threads(sides * actors), engine),
        reward=Allocation(actor_cpus, actor_gpus, threads(rewards)),
        learner=Allocation(actor_cpus, actor_gpus, max(1, threads(learners) // sides)),
        replica=Allocation(replica_cpus, replica_gpus, max(1, found.cores // replicas)),
    )


def resources_here(settings: Cluster) -> Resources:
    """Reads the resources of this machine without starting Ray: those that the recipe's cluster section sets are taken
    to be there, so that one machine can plan for another."""
    gpu_memory = gpu_memory_gb()
    gpus = len(gpu_memory) if settings.gpus is None else settings.gpus
    # In a container the machine has more than this process may use.
    limit, free = cpu_limit(), free_memory()
    cores = settings.cpus or max(1, min(len(os.sched_getaffinity(0)), math.floor(limit or MANY)))
    available = psutil.virtual_memory().available
    memory = settings.memory_gb or min(available, available if free is None else free) / GB
    return Resources(cores, cores, gpus, memory, settings.gpu_memory_gb or min(gpu_memory, default=None))


def _check_counts(recipe: Recipe, found: Resources) -> None:
    for name, section in trainings(recipe).items():
        if section.workers > found.cpus:
            raise UserError(f"{name}.workers={section.workers} is more than the {found.cpus:g} CPU cores there are")
        if 0 < found.gpus < section.workers:
            raise UserError(f"{name}.workers={section.workers} needs as many GPUs and there are {found.gpus:g}")
    learners, needed = recipe.rlhf.fleet.learner_workers, recipe.rlhf.devices
    if learners > 1 and 0 < found.gpus < needed:
        raise UserError(
            f"rlhf.fleet.learner_workers={learners} need a GPU each, and so do the rollout and reward actors: {needed} "
            f"in all, and there are {found.gpus:g}"
        )
    actors = recipe.rlhf.fleet.rollout_limit
    if actors > 8 * found.cpus:
        name = "max_rollout_actors" if recipe.rlhf.fleet.max_rollout_actors else "rollout_actors"
        raise UserError(f"rlhf.fleet.{name}={actors} is too many for {found.cpus:g} CPU cores: at most 8 a core")


def _check_engines(recipe: Recipe, found: Resources, cpus: float, gpus: float) -> None:
    """Refuses engines over several devices that no nodes have room for; their workers run on one node."""
    fleet = recipe.rlhf.fleet
    workers, engines = fleet.tensor_parallel, fleet.rollout_limit
    if workers == 1 or not cpus:
        return
    nodes = [Node(node.cpus / 2, node.gpus) for node in found.nodes or (Node(found.cpus, found.gpus),)]
    if 0 < gpus < 1:
        raise UserError(
            f"rlhf.fleet.tensor_parallel={workers} needs whole GPUs: RLHF takes {recipe.rlhf.devices} in all, and "
            f"there are {found.gpus:g}"
        )
    room = sum(node.places(workers * cpus, workers * gpus) for node in nodes)
    # There are no nodes to check before an autoscaler starts them.
    if found.nodes and room < engines:
        raise UserError(
            f"rlhf.fleet.tensor_parallel={workers}: {engines} engines of {workers} devices, each on one node, do not "
            f"fit on {_shown(found.nodes)}: set fewer"
        )


def _check_memory(recipe: Recipe, found: Resources) -> None:
    needs = memory_needs(recipe, on_gpu=found.gpus > 0)
    stage, most = max(needs.items(), key=lambda item: item[1])
    size = f"a model of {parameters(recipe.model) / 1e6:,.1f}M parameters"
    if most > found.memory_gb:
        raise UserError(
            f"too little memory: {stage} with {size} needs about {most:.1f} GB and {found.memory_gb:.1f} GB are free; "
            "choose a smaller model.size, fewer rlhf.fleet.rollout_actors, smaller micro_batch_rows or a larger machine"
        )
    if not found.gpus or found.gpu_memory_gb is None:
        return
    for name, section in trainings(recipe).items():
        on_each = training_memory(recipe, section, "cuda").total
        if on_each > found.gpu_memory_gb:
            advice = training_advice(recipe, name, section, found.gpu_memory_gb)
            raise UserError(
                f"too little GPU memory: {name} with {size} needs about {on_each:.1f} GB on each of "
                f"{section.workers} GPUs and {found.gpu_memory_gb:.1f} GB are there, "
                f"{on_each - found.gpu_memory_gb:.1f} GB too few; {advice}"
            )
    short = shortage(recipe, found.gpus, _gpu_share(found.gpus, recipe.rlhf.devices), found.gpu_memory_gb)
    if short:
        raise UserError(f"too little GPU memory: rlhf with {size}: {short}")


def _gpu_share(gpus: float, processes: int) -> float:
    """Returns one GPU a process, or the fraction with which equally many processes share each GPU."""
    if gpus == 0:
        return 0.0
    return _round_down(1 / math.ceil(processes / gpus)) if processes > gpus else 1.0


def _cpu_share(found: Resources, processes: int, gpus: float, part: float = 1.0) -> float:
    """Returns the most CPUs per process with which a number of processes fit on the nodes at once, each on one node.

    Args:
        found: the resources.
        processes: how many run at once.
        gpus: the GPUs of each.
        part: the part of every node's CPUs that they may take in all.

    Returns:
        the share, rounded down; 0 if no share is small enough, because too few nodes with free cores have free GPUs.
    """
    nodes = [Node(node.cpus * part, node.gpus) for node in found.nodes or (Node(found.cpus, found.gpus),)]
    most = min(found.cpus * part / processes, found.cores)
    # The largest share is one with which some node is full, or all of the quota is used.
    shares = {min(most, node.cpus / count) for node in nodes for count in range(1, processes + 1) if node.cpus}
    for share in sorted(shares, reverse=True):
        rounded = _round_down(share)
        if rounded and sum(node.places(rounded, gpus) for node in nodes) >= processes:
            return rounded
    return 0.0


def _shown(nodes: tuple[Node, ...]) -> str:
    kinds = Counter(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)
    return "nodes of " + ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())


def within_limits(found: Resources, limits: Cluster) -> Resources:
    """Applies the recipe's quota: a part of a cluster that others use too, or more than it has now.

    An autoscaler starts nodes that are asked for; their size is not known before. The stages wait for them.
    """
    cpus, gpus = limits.cpus or found.cpus, found.gpus if limits.gpus is None else limits.gpus
    wanted = cpus > found.cpus or gpus > found.gpus
    return replace(
        found,
        cpus=cpus,
        gpus=gpus,
        # The memory of nodes that an autoscaler will start is not known, and taken to be enough.
        memory_gb=limits.memory_gb or (math.inf if wanted else found.memory_gb),
        gpu_memory_gb=limits.gpu_memory_gb or found.gpu_memory_gb,
        nodes=() if wanted else found.nodes,
    )


def _round_down(share: float) -> float:
    """Rounds down to hundredths, so that shares never add up to more than the whole."""
    return math.floor(share * 100 + 1e-9) / 100


def connected_resources() -> Resources:
    """Reads the resources of the connected Ray cluster.

    Raises:
        RuntimeError: this process is not connected.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("make_plan without resources needs a Ray connection")
    total = ray.cluster_resources()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(Node(node.get("CPU", 0), node.get("GPU", 0)) for node in alive)
    cores = int(max((node.cpus for node in nodes), default=0)) or 1
    # Ray divides the memory that was free when it started between its heap and its object store. Their sum, unlike the
    # memory that is free now, stays the same throughout the run.
    memory = (total.get("memory", 0) + total.get("object_store_memory", 0)) / GB
    return Resources(total.get("CPU", 0) or 1, cores, total.get("GPU", 0), memory, nodes=nodes)
