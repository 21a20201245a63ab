"""The shares of every process in the machine's cores, GPUs and memory, decided before anything starts."""

import math
import os
import shutil
import subprocess
from dataclasses import dataclass, replace

import psutil

from cluster.errors import UserError
from cluster.recipe.model import Cluster
from cluster.recipe.recipe import Recipe
from cluster.runtime.memory import (
    GB,
    memory_needs,
    parameters,
    served_models,
    training_memory,
    trainings,
    whole_model_gb,
)


@dataclass(frozen=True)
class Allocation:
    """The share of one worker or actor: Ray's logical CPUs and GPUs, and the threads that torch may use."""

    cpus: float
    gpus: float
    threads: int


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
class Resources:
    """The resources of a machine or cluster.

    Attributes:
        cpus: cores of all machines together.
        cores: cores of the largest machine.
        gpus: GPUs of all machines together.
        memory_gb: free memory, in 1e9 bytes.
        gpu_memory_gb: memory of the smallest GPU, in 1e9 bytes, or None if unknown.
    """

    cpus: float
    cores: int
    gpus: float
    memory_gb: float
    gpu_memory_gb: float | None = None


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
    found = within_limits(resources or _connected_resources(), recipe.cluster)
    workers = max(section.workers for section in trainings(recipe).values())
    actors = recipe.rlhf.fleet.rollout_limit
    _check_counts(recipe, found)
    _check_memory(recipe, found)
    trainer_cpus = _round_down(min(found.cpus / workers, found.cores))
    actor_cpus = _round_down(min(found.cpus / (2 * recipe.rlhf.actors), found.cores))
    actor_gpus = _gpu_share(found.gpus, recipe.rlhf.actors)
    rewards, learners = max(1, recipe.rlhf.reward_models), recipe.rlhf.fleet.learner_workers
    # Threads that outnumber the cores wait for each other at every operation.
    sides = 2 if recipe.rlhf.fleet.max_staleness and not found.gpus else 1
    replicas = served_models(recipe) * recipe.serve.max_replicas
    replica_cpus = _round_down(min(found.cpus / (2 * replicas), found.cores))

    def threads(processes: int) -> int:
        return max(1, min(found.cores, int(found.cpus // processes)))

    return Plan(
        cpus=found.cpus,
        gpus=found.gpus,
        memory_gb=found.memory_gb,
        trainer=Allocation(trainer_cpus, min(1.0, found.gpus), threads(workers)),
        rollout=Allocation(actor_cpus, actor_gpus, threads(sides * actors)),
        reward=Allocation(actor_cpus, actor_gpus, threads(rewards)),
        learner=Allocation(actor_cpus, actor_gpus, max(1, threads(learners) // sides)),
        replica=Allocation(replica_cpus, _gpu_share(found.gpus, replicas), max(1, found.cores // replicas)),
    )


def within_limits(found: Resources, limits: Cluster) -> Resources:
    """Returns the part of the resources that a run may use: others may use the machine or cluster too."""
    return replace(
        found,
        cpus=min(found.cpus, limits.cpus or found.cpus),
        gpus=min(found.gpus, found.gpus if limits.gpus is None else limits.gpus),
        memory_gb=limits.memory_gb or found.memory_gb,
        gpu_memory_gb=limits.gpu_memory_gb or found.gpu_memory_gb,
    )


def resources_here(settings: Cluster) -> Resources:
    """Reads the resources of this machine without starting Ray: those that the recipe's cluster section sets are taken
    to be there, so that one machine can plan for another."""
    gpu_memory = _gpu_memory_gb()
    gpus = len(gpu_memory) if settings.gpus is None else settings.gpus
    cores = settings.cpus or len(os.sched_getaffinity(0))
    memory = settings.memory_gb or psutil.virtual_memory().available / GB
    return Resources(cores, cores, gpus, memory, settings.gpu_memory_gb or min(gpu_memory, default=None))


def _check_counts(recipe: Recipe, found: Resources) -> None:
    for name, section in trainings(recipe).items():
        if section.workers > found.cpus:
            raise UserError(f"{name}.workers={section.workers} is more than the {found.cpus:g} CPU cores there are")
        if 0 < found.gpus < section.workers:
            raise UserError(f"{name}.workers={section.workers} needs as many GPUs and there are {found.gpus:g}")
    learners, needed = recipe.rlhf.fleet.learner_workers, recipe.rlhf.actors
    if learners > 1 and 0 < found.gpus < needed:
        raise UserError(
            f"rlhf.fleet.learner_workers={learners} need a GPU each, and so do the rollout and reward actors: {needed} "
            f"in all, and there are {found.gpus:g}"
        )
    actors = recipe.rlhf.fleet.rollout_limit
    if actors > 8 * found.cpus:
        name = "max_rollout_actors" if recipe.rlhf.fleet.max_rollout_actors else "rollout_actors"
        raise UserError(f"rlhf.fleet.{name}={actors} is too many for {found.cpus:g} CPU cores: at most 8 a core")


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
        on_each = max(training_memory(recipe, section, "cuda").total, whole_model_gb(recipe.model))
        if on_each > found.gpu_memory_gb:
            raise UserError(
                f"too little GPU memory: {name} with {size} needs about {on_each:.1f} GB on each of "
                f"{section.workers} GPUs and {found.gpu_memory_gb:.1f} GB are there; set more {name}.workers, fewer "
                f"{name}.micro_batch_rows, {name}.recompute_activations=true or a smaller model.size"
            )


def _gpu_share(gpus: float, processes: int) -> float:
    """Returns one GPU a process, or the fraction with which equally many processes share each GPU."""
    if gpus == 0:
        return 0.0
    return _round_down(1 / math.ceil(processes / gpus)) if processes > gpus else 1.0


def _round_down(share: float) -> float:
    """Rounds down to hundredths, so that shares never add up to more than the whole."""
    return math.floor(share * 100 + 1e-9) / 100


def _connected_resources() -> Resources:
    import ray

    if not ray.is_initialized():
        raise RuntimeError("make_plan without resources needs a Ray connection")
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = int(max(node.get("CPU", 1) for node in nodes))
    # Ray divides the memory that was free when it started between its heap and its object store. Their sum, unlike the
    # memory that is free now, stays the same throughout the run.
    memory = (total.get("memory", 0) + total.get("object_store_memory", 0)) / GB
    return Resources(total.get("CPU", 1), cores, total.get("GPU", 0), memory)


def _gpu_memory_gb() -> list[float]:
    """Lists the memory, in 1e9 bytes, of every NVIDIA GPU that this process may use."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (subprocess.SubprocessError, OSError):
        return []
    found = [float(line) * 2**20 / GB for line in lines if line.replace(".", "").isdigit()]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if allowed is None else found[: len([name for name in allowed.split(",") if name.strip()])]
