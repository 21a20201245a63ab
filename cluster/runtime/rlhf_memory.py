"""The GPU memory of RLHF's processes, estimated from the recipe before anything starts, and how they share the GPUs."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from cluster.recipe.base import Lora
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.section import Rlhf
from cluster.runtime.memory import GB, kv_bytes, parameters, whole_model_gb
from cluster.runtime.training_memory import MOST_WORKERS, doubled, learner_memory

# The part of its GPU, or of its share of one, that vLLM takes for weights, cache and workspace, whatever it needs.
ENGINE_PART = 0.9
# What an engine takes beside weights and cache: activations of a step, CUDA graphs and libraries. An allowance.
ENGINE_WORKSPACE_GB = 2.0
ENGINE_BYTES = 2
# The most GPUs of an engine that advice proposes.
MOST_GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class GpuProcess:
    """A process of RLHF on a GPU, and the memory that it takes there, in GB."""

    name: str
    memory_gb: float


def engine_memory(recipe: Recipe) -> dict[str, float]:
    """Estimates the least memory of a rollout engine on each of its GPUs, in GB: its part of the weights in 16 bits and
    of the cache of keys and values of one sequence as long as the context, and a workspace."""
    workers = recipe.rlhf.fleet.tensor_parallel
    return {
        "weights": ENGINE_BYTES * parameters(recipe.model) / workers / GB,
        "KV cache of one context": kv_bytes(recipe.model) * recipe.model.context / workers / GB,
        "workspace": ENGINE_WORKSPACE_GB,
    }


def reward_memory(recipe: Recipe) -> float:
    """Estimates the memory of an actor with the reward model, all members of it, in GB."""
    return recipe.reward.members * whole_model_gb(recipe.model)


def gpu_layout(recipe: Recipe, gpus: float, share: float, gpu_memory_gb: float) -> list[list[GpuProcess]]:
    """Lists the processes of RLHF on each GPU, those that take the most first.

    Args:
        recipe: the recipe.
        gpus: how many GPUs there are.
        share: the share of a GPU of each process.
        gpu_memory_gb: the memory of each GPU.
    """
    fleet = recipe.rlhf.fleet
    own = math.floor(1 / share + 1e-9)
    engine = sum(engine_memory(recipe).values())
    learner = learner_memory(recipe).total
    found = [GpuProcess(f"learner {rank}", learner) for rank in range(fleet.learner_workers)]
    found += [GpuProcess(f"reward {number}", reward_memory(recipe)) for number in range(recipe.rlhf.reward_models)]
    # An engine takes its part whether it needs it or not.
    taken = max(engine, ENGINE_PART * share * gpu_memory_gb)
    workers = fleet.tensor_parallel
    found += [
        GpuProcess(f"rollout {number}" + (f".{worker}" if workers > 1 else ""), taken)
        for number in range(fleet.rollout_limit)
        for worker in range(workers)
    ]
    return [found[begin : begin + own] for begin in range(0, len(found), own)][: math.ceil(gpus)]


def shortage(recipe: Recipe, gpus: float, share: float, gpu_memory_gb: float) -> str | None:
    """Names the processes of RLHF that do not fit on a GPU, the missing memory and a change that helps; None if all
    fit."""
    fullest = max(
        gpu_layout(recipe, gpus, share, gpu_memory_gb), key=lambda gpu: sum(process.memory_gb for process in gpu)
    )
    needed = sum(process.memory_gb for process in fullest)
    if needed <= gpu_memory_gb:
        return None
    names = ", ".join(f"{process.name} {process.memory_gb:.1f}" for process in fullest)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in asdict(learner_memory(recipe)).items() if value >= 0.05)
    detail = f"; of the learner's: {parts}" if any(one.name.startswith("learner") for one in fullest) else ""
    return (
        f"one GPU would hold {names}: {needed:.1f} GB, and {gpu_memory_gb:.1f} GB are there, "
        f"{needed - gpu_memory_gb:.1f} GB too few{detail}; {_advice(recipe, gpus, gpu_memory_gb)}"
    )


def _advice(recipe: Recipe, gpus: float, gpu_memory_gb: float) -> str:
    """Names the changes, the least of them, with which RLHF fits."""
    reward = reward_memory(recipe)
    if recipe.rlhf.reward_models and reward > gpu_memory_gb:
        return (
            f"the reward model takes {reward:.1f} GB of one GPU: choose GPUs with more memory, a smaller model.size, "
            "or rlhf.rewards of kind function or http"
        )
    if (engine := _engine_gpus(recipe, gpu_memory_gb)) is None:
        return "no number of GPUs helps an engine: set a shorter model.context or a smaller model.size"
    first = [f"rlhf.fleet.tensor_parallel={engine}"] if engine != recipe.rlhf.fleet.tensor_parallel else []
    for words, settings in _changes(_with_fleet(recipe.rlhf, tensor_parallel=engine), gpus):
        if learner_memory(recipe.model_copy(update={"rlhf": settings})).total > gpu_memory_gb:
            continue
        changes = [*first, *words]
        if settings.devices > gpus or not changes:
            changes.append(f"{settings.devices} GPUs, one for each process")
        return "it fits with " + " and ".join(changes)
    return "no number of learner_workers helps: set a shorter model.context or a smaller model.size"


def _changes(settings: Rlhf, gpus: float) -> Iterator[tuple[list[str], Rlhf]]:
    """Yields changes to the learner, the least first: those that cost time alone, more workers on the GPUs there are,
    adapters in place of all weights, and more GPUs."""
    words: list[str] = []
    yield words, settings
    for name, value in (("micro_batch_rows", 1), ("recompute_activations", True)):
        if getattr(settings, name) != value:
            words = [*words, f"rlhf.{name}={str(value).lower()}"]
            settings = settings.model_copy(update={name: value})
            yield words, settings
    more = [
        ([*words, f"rlhf.fleet.learner_workers={count}"], _with_fleet(settings, learner_workers=count))
        for count in doubled(settings.fleet.learner_workers, MOST_WORKERS)[1:]
    ]
    yield from (change for change in more if change[1].devices <= gpus)
    if settings.lora is None:
        yield [*words, "rlhf.lora={rank: 16}"], settings.model_copy(update={"lora": Lora(rank=16)})
    yield from more


def _engine_gpus(recipe: Recipe, gpu_memory_gb: float) -> int | None:
    """Finds how many GPUs are enough for an engine: as many as it has, doubled or more."""
    for count in doubled(recipe.rlhf.fleet.tensor_parallel, MOST_GPUS_OF_A_NODE):
        changed = recipe.model_copy(update={"rlhf": _with_fleet(recipe.rlhf, tensor_parallel=count)})
        if sum(engine_memory(changed).values()) / ENGINE_PART <= gpu_memory_gb:
            return count
    return None


def _with_fleet(settings: Rlhf, **changes: int) -> Rlhf:
    return settings.model_copy(update={"fleet": settings.fleet.model_copy(update=changes)})
