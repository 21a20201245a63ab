"""The GPU memory of RLHF's processes, estimated from the recipe before anything starts, and how they share the GPUs."""

import math
from dataclasses import asdict, dataclass

from cluster.recipe.base import Lora
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf import Rlhf
from cluster.runtime.memory import (
    ACTIVATION_BYTES,
    CAST_BYTES,
    GB,
    HELD_BYTES,
    LOGIT_BYTES,
    kv_bytes,
    parameters,
    trained_parameters,
    trained_shape,
    vocabulary,
    whole_model_gb,
)

# The part of its GPU, or of its share of one, that vLLM takes for weights, cache and workspace, whatever it needs.
ENGINE_PART = 0.9
# What an engine takes beside weights and cache: activations of a step, CUDA graphs and libraries. An allowance.
ENGINE_WORKSPACE_GB = 2.0
ENGINE_BYTES = 2
# The most learner workers that advice proposes.
MOST_WORKERS = 1024


@dataclass(frozen=True)
class LearnerMemory:
    """The memory of one learner worker on its GPU, in GB."""

    weights: float
    reference: float
    critic: float
    gradients: float
    optimizer: float
    copies: float
    gathered: float
    casts: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class GpuProcess:
    """A process of RLHF on a GPU, and the memory that it takes there, in GB."""

    name: str
    memory_gb: float


def learner_memory(recipe: Recipe) -> LearnerMemory:
    """Estimates the memory of a learner worker, for P parameters in float32 that FSDP2 shards over W workers.

    - Weights 4 P / W; the reference as much, and with LoRA nothing; PPO's critic, its gradients and moments 16 P / W.
    - Gradients 4 and AdamW's moments 8 bytes for each trained parameter, over W; with a limit of `rlhf.stop`, two
      copies of the trained weights.
    - Gathered, casts and activations as in training; logits 12 bytes each, for `rlhf.micro_batch_rows` rows of the
      context.
    """
    settings, workers = recipe.rlhf, recipe.rlhf.fleet.learner_workers
    size, shape = parameters(recipe.model), trained_shape(recipe.model)
    precision = settings.precision or "bfloat16"
    trained = trained_parameters(recipe.model, settings.lora)
    tokens = settings.micro_batch_rows * recipe.model.context
    embedding = vocabulary(recipe.model) * shape.hidden
    layer = (size - embedding) / shape.layers

    def sharded(bytes_each: float, count: float) -> float:
        return bytes_each * count / workers / GB

    return LearnerMemory(
        weights=sharded(HELD_BYTES, size),
        reference=0.0 if settings.lora else sharded(HELD_BYTES, size),
        critic=sharded(4 * HELD_BYTES, size) if settings.algorithm == "ppo" else 0.0,
        gradients=sharded(HELD_BYTES, trained),
        optimizer=sharded(2 * HELD_BYTES, trained),
        copies=sharded(2 * HELD_BYTES, trained) if settings.stop.limits else 0.0,
        gathered=HELD_BYTES * (3 * layer + 2 * embedding) / GB if workers > 1 else 0.0,
        casts=CAST_BYTES[precision] * size / GB,
        activations=tokens * shape.hidden * shape.layers * ACTIVATION_BYTES["cuda"][precision] / GB,
        logits=tokens * vocabulary(recipe.model) * LOGIT_BYTES / GB,
    )


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
    learner = max(learner_memory(recipe).total, whole_model_gb(recipe.model))
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
    """Says what of RLHF does not fit on a GPU, how much is short and which change helps; None if all fits."""
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
    """Names the first change with which RLHF fits."""

    def fits(changed: Rlhf) -> bool:
        changed_recipe = recipe.model_copy(update={"rlhf": changed})
        learner = max(learner_memory(changed_recipe).total, whole_model_gb(recipe.model))
        others = max(reward_memory(changed_recipe) * bool(changed.reward_models), sum(engine_memory(recipe).values()))
        return max(learner, others / ENGINE_PART) <= gpu_memory_gb

    def spread(settings: Rlhf, workers: int) -> Rlhf:
        return settings.model_copy(update={"fleet": settings.fleet.model_copy(update={"learner_workers": workers})})

    if whole_model_gb(recipe.model) > gpu_memory_gb:
        return (
            f"more workers do not help, as each holds the whole model of {whole_model_gb(recipe.model):.1f} GB before "
            "it is sharded: choose GPUs with more memory or a smaller model.size"
        )
    ways: list[tuple[str, Rlhf]] = [("", recipe.rlhf)]
    if recipe.rlhf.micro_batch_rows > 1:
        ways.append(("rlhf.micro_batch_rows=1", recipe.rlhf.model_copy(update={"micro_batch_rows": 1})))
    if recipe.rlhf.lora is None:
        ways.append(("rlhf.lora={rank: 16}", ways[-1][1].model_copy(update={"lora": Lora(rank=16)})))
    counts = [2**power for power in range(MOST_WORKERS.bit_length())]
    for number, (_, settings) in enumerate(ways):
        words = [change for change, _ in ways[1 : number + 1]]
        for workers in (count for count in counts if count >= settings.fleet.learner_workers):
            changed = spread(settings, workers)
            if not fits(changed):
                continue
            if workers != settings.fleet.learner_workers:
                words.append(f"rlhf.fleet.learner_workers={workers}")
            total = changed.devices
            if total > gpus:
                words.append(f"{total} GPUs, one for each process")
            return "it fits with " + " and ".join(words or [f"{total} GPUs, one for each process"])
    return "no number of learner_workers helps: set a shorter model.context or a smaller model.size"
