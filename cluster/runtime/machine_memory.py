"""The memory that every stage takes on the machine, estimated from the recipe before anything starts."""

from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.fleet import FleetSettings
from cluster.recipe.training import Dpo, Training
from cluster.runtime.memory import (
    GB,
    HELD_BYTES,
    LOGIT_BYTES,
    SMALL_BYTES,
    reads_by_parts,
    served_models,
    trained_parameters,
    trainings,
    vocabulary,
    whole_model_gb,
)
from cluster.runtime.training_memory import trained_in, training_memory

# Allowance for a process before it loads a model: Python, torch, Ray, and vLLM in an engine.
PROCESS_GB = 0.7
# Allowance for Ray's own processes on the head node, without the dashboard.
RAY_GB = 0.8
# A served engine's KV cache on a CPU (`CPU_CACHE_BYTES` of `serve.replica.vllm_engine`).
SERVED_CACHE_GB = 0.27
# A rollout engine's KV cache on a CPU, at most (`_MAX_CPU_CACHE_BYTES` of a rollout actor).
CACHE_GB = 1.0
# Bytes of a trained parameter beside its weight: float32 gradient and the two moments of AdamW.
LEARNING_BYTES = 12


def object_store_gb(recipe: Recipe) -> float:
    """Returns the shared memory for a local cluster, in GB: two versions of the weights, and blocks of data."""
    return 1.0 + 2 * whole_model_gb(recipe.model)


def memory_needs(recipe: Recipe, on_gpu: bool = False) -> dict[str, float]:
    """Estimates the peak memory of every stage on the machine, in GB, for a model of P parameters.

    - Every process: 0.7 GB. Ray itself: 0.8 GB. The object store as far as it is used: two versions of the weights, 8 P
      bytes, and with GPUs, whose engines compute in 16 bits, 4 P.
    - Training: `training_memory` for each worker.
    - RLHF: the learner's policy and its reference 4 P bytes each, or 4 P together with LoRA, and 12 bytes for each
      trained parameter; with a limit of `rlhf.stop`, two more copies of the trained weights; PPO's critic 16 P. Every
      reward model 4 P, and every rollout engine 4 P and its cache of 1 GB.
    - Serving: for the largest number of replicas, three engines, four with a story page, of 4 P and a cache of 0.27 GB
      each, and the reward model; on CPUs models of at most 100 MB share a process.

    With GPUs the models are in their memory. The machine holds the processes and, while they start, the models of all
    workers, of the learner and of the rewards, each once where workers read it by parts and once a worker where they
    cannot; or, if that is more, the copy from which a training checkpoint is written: 12 bytes for each trained
    parameter.

    Args:
        recipe: the recipe.
        on_gpu: whether the models are on GPUs.

    Returns:
        the peak by the name of the stage.
    """
    rlhf, whole = recipe.rlhf, whole_model_gb(recipe.model)
    engines, replicas = rlhf.fleet.rollout_limit, served_models(recipe) * recipe.serve.max_replicas
    ray = RAY_GB + (1 if on_gpu else 2) * whole
    critics = 1 if rlhf.algorithm == "ppo" else 0
    models = (2 if rlhf.needs_reference and not (rlhf.lora and not rlhf.teacher) else 1) + critics
    members = recipe.reward.members
    if on_gpu:
        started = (1 if reads_by_parts(recipe) else rlhf.fleet.learner_workers) * models + rlhf.reward_models * members
        return {
            **{
                name: ray
                + part.workers * PROCESS_GB
                + max(_started(recipe, part) * whole, _checkpoint_gb(recipe, part))
                for name, part in trainings(recipe).items()
            },
            "rlhf": ray + started * whole + (engines + rlhf.reward_models + rlhf.fleet.learner_workers) * PROCESS_GB,
            "serve": ray + replicas * PROCESS_GB,
        }
    needs = {
        name: ray + part.workers * (PROCESS_GB + training_memory(recipe, part, "cpu").total)
        for name, part in trainings(recipe).items()
    }
    trained = trained_parameters(recipe.model, rlhf.lora) / GB
    # With `stop`, the learner keeps the newest weights within the limits, and those from before the step.
    copies = 2 if rlhf.stop.limits else 0
    learning = LEARNING_BYTES * (trained + critics * whole / HELD_BYTES) + copies * HELD_BYTES * trained
    logits = rlhf.micro_batch_rows * recipe.model.context * vocabulary(recipe.model) * LOGIT_BYTES / GB
    learner = rlhf.fleet.learner_workers * (PROCESS_GB + logits) + models * whole + learning
    engine = PROCESS_GB + CACHE_GB + whole
    reward = PROCESS_GB + members * whole
    needs["rlhf"] = ray + learner + rlhf.reward_models * reward + engines * engine
    # All served models but the reward model have an engine; small ones share a process.
    models = served_models(recipe)
    processes = 1 if whole * GB <= SMALL_BYTES else models
    served = processes * PROCESS_GB + (models - 1) * (SERVED_CACHE_GB + whole) + members * whole
    needs["serve"] = ray + recipe.serve.max_replicas * served
    return needs


def story_training_gb(recipe: Recipe) -> float:
    """Estimates the memory of a visitor's training beside the served models, in GB: that of RLHF with one rollout
    actor, without Ray's own, and the process that leads it."""
    alone = recipe.rlhf.model_copy(update={"fleet": FleetSettings(rollout_actors=1)})
    needed = memory_needs(recipe.model_copy(update={"rlhf": alone}))["rlhf"]
    return needed - RAY_GB + PROCESS_GB


def _started(recipe: Recipe, section: Training) -> int:
    """Counts the models that the machine holds while a stage's workers start."""
    return (1 if reads_by_parts(recipe, section) else section.workers) * (
        2 if isinstance(section, Dpo) and not section.lora else 1
    )


def _checkpoint_gb(recipe: Recipe, section: Training) -> float:
    """Returns the size of a checkpoint: trained weights and the two moments of AdamW, in float32."""
    return 3 * HELD_BYTES * trained_in(recipe, section) / GB
