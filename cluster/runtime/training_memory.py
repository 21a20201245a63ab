"""The memory of training workers and of RLHF's learner, estimated from the recipe before anything starts."""

from dataclasses import asdict, dataclass

from cluster.recipe.recipe import Recipe
from cluster.recipe.training import Dpo, FineTuning, RewardModel, Training
from cluster.runtime.memory import (
    GB,
    HELD_BYTES,
    LOGIT_BYTES,
    LOGITS_AT_ONCE,
    parameters,
    trained_parameters,
    trained_shape,
    vocabulary,
)
from cluster.runtime.start_model import lacks_template

KEPT_LOGIT_BYTES = {"bfloat16": 2, "float32": 4}
# Bytes of activations kept for the backward pass, per token, layer and unit of width. Measured on a GPU with rows of
# 2,048 tokens: 57 at 135M and 1B parameters, 94 in float32. That is more than the 34 of Korthikanti et al. 2022,
# section 4.1: SwiGLU has a third matrix, and autocast leaves the residual stream and norms in 32 bits, like the input
# from which a layer is recomputed. Measured on a CPU with rows of 256 tokens: 114 to 126 in bfloat16 and 172 to 183 in
# float32, from 15M to 135M; memory that is freed between the passes stays with the process.
ACTIVATION_BYTES = {"cuda": {"bfloat16": 58, "float32": 96}, "cpu": {"bfloat16": 126, "float32": 184}}
# The same with recomputation: the float32 input of every layer.
INPUT_BYTES = 4
# And of the one layer that is being recomputed. On a CPU, where freed memory stays with the process, its gradients are
# held too, and the gradient of the embedding three times, which hardly shows beside the activations of all layers.
# Measured with 135M parameters and 2 to 16 rows of 256 tokens.
RECOMPUTED_LAYER_BYTES = {"cuda": ACTIVATION_BYTES["cuda"], "cpu": {"bfloat16": 432, "float32": 489}}
EMBEDDING_GRADIENTS = {"cuda": 0, "cpu": 3}
# Bytes of a parameter that autocast adds: a copy in 16 bits for the matrix products.
CAST_BYTES = {"bfloat16": 2, "float32": 0}

# The most workers that advice proposes.
MOST_WORKERS = 1024


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one worker of a training stage, or of RLHF's learner, on the device of its model, in GB."""

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
class _Work:
    """The sizes of the tensors that a worker holds and computes, which decide its memory."""

    workers: int
    trained: int
    tokens: int
    precision: str
    recompute: bool
    device: str
    reduce_once: bool = False


def training_memory(recipe: Recipe, section: Training, device: str) -> TrainingMemory:
    """Estimates the memory of a training worker, for P parameters in float32 that FSDP2 shards over W workers.

    - Weights: 4 P / W bytes, and as many for the reference of `dpo`. Gradients: 4 P / W, with `reduce_once` 4 P more.
      AdamW's moments: 8 P / W. With LoRA, gradients and moments are those of the adapters alone, and there is no
      separate reference: it is the model without its adapters.
    - Gathered, with several workers: weights of two layers (one computing, the next on its way) and of the embedding,
      and gradients of one layer and of the embedding before they are scattered.
    - Casts: with bfloat16, 2 P bytes that autocast keeps for the backward pass, unless activations are recomputed.
    - Activations: 58 bytes a token, layer and unit of width, 96 in float32, and on a CPU 126 and 184. With
      recomputation 4 bytes, and for one layer 58 (96; on a CPU 432 and 489, and 12 bytes more of gradients for each
      parameter of the embedding).
    - Logits: 12 bytes each; where there are many, 2 (in float32 4) bytes; the reward model has none.
    - Tokens: of a row of text or conversation, the context; of a row of `dpo`, two contexts. A row of `reward` is a
      ranking, whose answers share one prompt: the context, and for every answer but the first `collect.max_tokens`
      more, or a context where answers are imported.

    Where the recipe sets no precision, a GPU uses bfloat16, and a CPU may use either: the larger estimate is returned.

    Args:
        recipe: the recipe.
        section: the training section of the stage.
        device: cpu or cuda.
    """
    either = ("bfloat16",) if device == "cuda" else ("bfloat16", "float32")
    precisions = (section.precision,) if section.precision else either
    return max((_memory_in(precision, recipe, section, device) for precision in precisions), key=lambda it: it.total)


def _memory_in(precision: str, recipe: Recipe, section: Training, device: str) -> TrainingMemory:
    tokens = section.micro_batch_rows * _row_tokens(recipe, section)
    trained, once = trained_in(recipe, section), section.reduce_once
    work = _Work(section.workers, trained, tokens, precision, section.recompute_activations, device, once)
    logits = 0.0 if isinstance(section, RewardModel) else _logits_gb(recipe, work)
    return _memory(recipe, work, logits, reference=isinstance(section, Dpo) and not section.lora)


def learner_memory(recipe: Recipe) -> TrainingMemory:
    """Estimates the memory of a worker of RLHF's learner on its GPU, for P parameters in float32 that FSDP2 shards over
    W workers.

    - As in training. The reference 4 P / W, unless LoRA makes it the policy without adapters, or no step computes it;
      PPO's critic with its gradients and moments 16 P / W; with a limit of `rlhf.stop`, two copies of the trained
      weights.
    - Logits 12 bytes each, for `rlhf.micro_batch_rows` rows of the context.
    """
    settings = recipe.rlhf
    work = _Work(
        settings.fleet.learner_workers,
        trained_parameters(recipe.model, settings.lora),
        settings.micro_batch_rows * recipe.model.context,
        settings.precision or "bfloat16",
        settings.recompute_activations,
        "cuda",
    )
    logits = work.tokens * vocabulary(recipe.model) * LOGIT_BYTES / GB
    return _memory(
        recipe,
        work,
        logits,
        reference=settings.needs_reference and not (settings.lora and not settings.teacher),
        critic=settings.algorithm == "ppo",
        copies=2 if settings.stop.limits else 0,
    )


def _memory(
    recipe: Recipe, work: _Work, logits: float, reference: bool, critic: bool = False, copies: int = 0
) -> TrainingMemory:
    size, shape = parameters(recipe.model), trained_shape(recipe.model)
    embedding = vocabulary(recipe.model) * shape.hidden
    layer = (size - embedding) / shape.layers
    kept, extra = ACTIVATION_BYTES[work.device][work.precision] * shape.layers, 0
    if work.recompute:
        kept = INPUT_BYTES * shape.layers + RECOMPUTED_LAYER_BYTES[work.device][work.precision]
        extra = EMBEDDING_GRADIENTS[work.device] * embedding
    if work.reduce_once and work.workers > 1:
        extra += work.trained
    held, trained = HELD_BYTES * size / work.workers / GB, HELD_BYTES * work.trained / work.workers / GB
    return TrainingMemory(
        weights=held,
        reference=held if reference else 0.0,
        critic=4 * held if critic else 0.0,
        gradients=trained + HELD_BYTES * extra / GB,
        optimizer=2 * trained,
        copies=copies * trained,
        gathered=HELD_BYTES * (3 * layer + 2 * embedding) / GB if work.workers > 1 else 0.0,
        casts=0.0 if work.recompute else CAST_BYTES[work.precision] * size / GB,
        activations=work.tokens * shape.hidden * kept / GB,
        logits=logits,
    )


def training_advice(recipe: Recipe, name: str, section: Training, gpu_memory_gb: float) -> str:
    """Names the changes, the least of them, with which the training stage of that name fits on GPUs."""
    words: list[str] = []
    for field, value in (("micro_batch_rows", 1), ("recompute_activations", True)):
        if getattr(section, field) != value:
            words.append(f"{name}.{field}={str(value).lower()}")
            section = section.model_copy(update={field: value})
            if training_memory(recipe, section, "cuda").total <= gpu_memory_gb:
                return "it fits with " + " and ".join(words)
    for workers in doubled(section.workers, MOST_WORKERS)[1:]:
        changed = section.model_copy(update={"workers": workers})
        if training_memory(recipe, changed, "cuda").total <= gpu_memory_gb:
            return "it fits with " + " and ".join([*words, f"{name}.workers={workers}"])
    return f"no number of {name}.workers helps: set a shorter model.context or a smaller model.size"


def doubled(count: int, most: int) -> list[int]:
    """Returns a count, and its doubles up to the most."""
    return [count * 2**power for power in range(most.bit_length()) if count * 2**power <= max(count, most)]


def trained_in(recipe: Recipe, section: Training) -> int:
    """Counts the parameters that a stage trains."""
    lora = section.lora if isinstance(section, FineTuning | Dpo) else None
    # Beside adapters, embeddings of tokens that the model has not learned are trained (actors/model/lora.py).
    embeddings = vocabulary(recipe.model) * trained_shape(recipe.model).hidden
    unlearned = isinstance(section, FineTuning) and lora and (lacks_template(recipe.model) or recipe.sft.chat_template)
    return trained_parameters(recipe.model, lora) + (embeddings if unlearned else 0)


def _row_tokens(recipe: Recipe, section: Training) -> int:
    """Returns the most tokens in a row of a stage, see `training_memory`."""
    context, collect = recipe.model.context, recipe.collect
    if isinstance(section, Dpo):
        return 2 * context
    if isinstance(section, RewardModel):
        answer = context if collect.annotator == "imported" else min(context, collect.max_tokens)
        answers = collect.samples_per_prompt + len(section.counterexamples)
        return context + (answers - 1) * answer
    return context


def _logits_gb(recipe: Recipe, work: _Work) -> float:
    logits = work.tokens * vocabulary(recipe.model)
    if logits <= LOGITS_AT_ONCE[work.device]:
        return logits * LOGIT_BYTES / GB
    return min(logits * KEPT_LOGIT_BYTES[work.precision], LOGITS_AT_ONCE[work.device] * LOGIT_BYTES) / GB
