"""The shape of a model and the memory of every stage, estimated from the recipe before anything starts."""

from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.fleet import FleetSettings
from cluster.recipe.model import Model, head_size
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import Dpo, FineTuning, RewardModel, Training
from cluster.runtime.start_model import lacks_template, parameters_in, start_config

GB = 1e9

# Allowance for a process before it loads a model: Python, torch, Ray, and vLLM in an engine.
PROCESS_GB = 0.7
# Allowance for Ray's own processes on the head node, without the dashboard.
RAY_GB = 0.8
# Below this size an engine's memory and start-up time are those of its process and not of the model: on CPUs served
# models so small share one.
SMALL_BYTES = 100 << 20
# A served engine's KV cache on a CPU (`CPU_CACHE_BYTES` of `serve.replica.vllm_engine`).
SERVED_CACHE_GB = 0.27
# A rollout engine's KV cache on a CPU, at most (`_MAX_CPU_CACHE_BYTES` of a rollout actor).
CACHE_GB = 1.0
# Bytes of a parameter: float32 weights.
HELD_BYTES = 4
# Bytes of a trained parameter beside its weight: float32 gradient and the two moments of AdamW.
LEARNING_BYTES = 12
# Bytes of a logit: itself, its softmax and its gradient in float32. They dominate the activations of a small model.
LOGIT_BYTES = 12
# Training makes at most so many logits at a time (actors.model.chunked_cross_entropy): 0.8 GB, and on a GPU 26. Where
# there are more, it keeps each in the type of the matrix products alone, within as many bytes in all.
LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 31}
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


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int

    def parameters(self, vocabulary: int) -> int:
        """Counts the parameters, with tied embeddings: V·h + L·(4h² + 3·h·i + 2h) + h."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return vocabulary * self.hidden + self.layers * layer + self.hidden


def shape_of(model: Model) -> Shape:
    """Finds the shape whose number of parameters is nearest to `model.size`; dimensions that the recipe sets are kept.

    Rules: width over depth between 40 and 128, as in GPT-2 to Llama (Kaplan et al. 2020 find loss flat there), hidden a
    multiple of 64, head size 32 below 512 and 64 above, SwiGLU of 8/3 the width rounded up to 64.
    """
    widths = [model.hidden] if model.hidden else list(range(64, 16385, 64))
    depths = [model.layers] if model.layers else list(range(2, 129))
    free = not (model.hidden or model.layers)
    shapes = [_shape(h, n, model.heads) for h in widths for n in depths if not free or 40 <= h / n <= 128]
    return min(shapes, key=lambda shape: abs(shape.parameters(model.vocabulary) - model.parameters))


def parameters(model: Model) -> int:
    """Estimates the parameters of the recipe's model, from the files that it starts from, its shape or its `size`.

    Raises:
        UserError: it starts from a model on the Hub, and the recipe does not say how large that is.
    """
    start = Path(model.start_from) if model.start_from else None
    if start is not None and start.is_file():
        # GGUF files of four bits hold about 0.56 bytes a parameter; wider ones are overestimated, on the safe side.
        return round(start.stat().st_size / 0.56)
    if start is not None and start.is_dir():
        return parameters_in(start)
    if start is not None and not {"size", "vocabulary"} <= model.model_fields_set:
        raise UserError(
            f"model.start_from: {start} is no folder or file here, and the size of a model on the Hub is not known to "
            "the resource plan: set model.size and model.vocabulary to its own"
        )
    return shape_of(model).parameters(model.vocabulary) if model.hidden or model.layers else model.parameters


def vocabulary(model: Model) -> int:
    """Returns the size of the vocabulary, from the folder that the model starts from, else from the recipe."""
    return int(start_config(model).get("vocab_size", model.vocabulary))


def trained_shape(model: Model) -> Shape:
    """Returns the shape of the folder that the model starts from, else one with as many parameters."""
    config = start_config(model)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if all(isinstance(config.get(name), int) for name in names):
        return Shape(*(config[name] for name in names))
    size = {"size": f"{max(1, parameters(model) // 1000)}K", "vocabulary": vocabulary(model)}
    return shape_of(model.model_copy(update=size))


def kv_bytes(model: Model) -> int:
    """Returns the bytes that one token takes in a cache of keys and values in 16 bits."""
    shape, config = trained_shape(model), start_config(model)
    # With grouped queries (Ainslie et al. 2023) keys and values have fewer heads.
    kept = int(config.get("num_key_value_heads", shape.heads)) / int(config.get("num_attention_heads", shape.heads))
    return round(2 * 2 * shape.layers * shape.hidden * kept)


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one training worker on the device of its model, in GB."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    casts: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(asdict(self).values())


def training_memory(recipe: Recipe, section: Training, device: str) -> TrainingMemory:
    """Estimates the memory of a training worker, for P parameters in float32 that FSDP2 shards over W workers.

    - Weights: 4 P / W bytes; for `dpo`, whose reference is held too, 8 P / W. Gradients: 4 P / W. AdamW's moments:
      twice as many. With LoRA, the last two are those of the adapters alone, which are the whole difference from the
      reference.
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
    size, shape = parameters(recipe.model), trained_shape(recipe.model)
    trained = _trained_in(recipe, section)
    tokens = section.micro_batch_rows * _row_tokens(recipe, section)
    embedding = vocabulary(recipe.model) * shape.hidden
    layer = (size - embedding) / shape.layers
    kept, extra = ACTIVATION_BYTES[device][precision] * shape.layers, 0
    if section.recompute_activations:
        kept = INPUT_BYTES * shape.layers + RECOMPUTED_LAYER_BYTES[device][precision]
        extra = EMBEDDING_GRADIENTS[device] * embedding
    # The reference of DPO lies beside the policy.
    models = 2 if isinstance(section, Dpo) and not section.lora else 1
    return TrainingMemory(
        weights=HELD_BYTES * models * size / section.workers / GB,
        gradients=HELD_BYTES * (trained / section.workers + extra) / GB,
        optimizer=2 * HELD_BYTES * trained / section.workers / GB,
        gathered=HELD_BYTES * (3 * layer + 2 * embedding) / GB if section.workers > 1 else 0.0,
        casts=0.0 if section.recompute_activations else CAST_BYTES[precision] * size / GB,
        activations=tokens * shape.hidden * kept / GB,
        logits=0.0 if isinstance(section, RewardModel) else _logits_gb(recipe.model, precision, tokens, device),
    )


def whole_model_gb(model: Model) -> float:
    """Returns the size of the model in float32, in GB.

    Every worker builds it in the machine's memory, and holds it on its GPU until it is sharded.
    """
    return HELD_BYTES * parameters(model) / GB


def object_store_gb(recipe: Recipe) -> float:
    """Returns the shared memory for a local cluster, in GB: two versions of the weights, and blocks of data."""
    return 1.0 + 2 * whole_model_gb(recipe.model)


def memory_needs(recipe: Recipe, on_gpu: bool = False) -> dict[str, float]:
    """Estimates the peak memory of every stage on the machine, in GB, for a model of P parameters.

    - Every process: 0.7 GB. Ray itself: 0.8 GB. The object store as far as it is used: 8 P bytes (two versions of the
      weights).
    - Training: `training_memory` for each worker.
    - RLHF: the learner's policy and its reference 4 P bytes each, or 4 P together with LoRA, and 12 bytes for each
      trained parameter; with a limit of `rlhf.stop`, two more copies of the trained weights; PPO's critic 16 P. Every
      reward model 4 P, and every rollout engine 4 P and its cache of 1 GB.
    - Serving: for the largest number of replicas, three engines, four with a story page, of 4 P and a cache of 0.27 GB
      each, and the reward model; on CPUs models of at most 100 MB share a process.

    With GPUs the models are there. The machine holds the processes and, while they start, every model of each worker,
    of the learner and of the rewards; or, if that is more, the copy from which a training checkpoint is written: 12
    bytes for each trained parameter.

    Args:
        recipe: the recipe.
        on_gpu: whether the models are on GPUs.

    Returns:
        the peak by the name of the stage.
    """
    rlhf, whole = recipe.rlhf, whole_model_gb(recipe.model)
    engines, replicas = rlhf.fleet.rollout_limit, served_models(recipe) * recipe.serve.max_replicas
    ray = RAY_GB + 2 * whole
    critics = 1 if rlhf.algorithm == "ppo" else 0
    models = (1 if rlhf.lora else 2) + critics
    members = recipe.reward.members
    if on_gpu:
        started = rlhf.fleet.learner_workers * models + rlhf.reward_models * members
        return {
            **{
                name: ray
                + part.workers * PROCESS_GB
                + max(part.workers * whole * (2 if isinstance(part, Dpo) else 1), _checkpoint_gb(recipe, part))
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
    # The newest weights within the limits, and those from before the step.
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


def served_models(recipe: Recipe) -> int:
    """Counts the models that are served: base, fine-tuned, policy and reward model, and the story's visitor's."""
    return 5 if recipe.serve.story else 4


def _checkpoint_gb(recipe: Recipe, section: Training) -> float:
    """Returns the size of a checkpoint: trained weights and the two moments of AdamW, in float32."""
    return 3 * HELD_BYTES * _trained_in(recipe, section) / GB


def _trained_in(recipe: Recipe, section: Training) -> int:
    lora = section.lora if isinstance(section, FineTuning | Dpo) else None
    # Beside adapters, embeddings of tokens that the model has not learned are trained (actors/model/lora.py).
    embeddings = vocabulary(recipe.model) * trained_shape(recipe.model).hidden
    unlearned = isinstance(section, FineTuning) and lora and (lacks_template(recipe.model) or recipe.sft.chat_template)
    return trained_parameters(recipe.model, lora) + (embeddings if unlearned else 0)


def trained_parameters(model: Model, lora: Lora | None) -> int:
    """Counts the trained parameters: all, or those of the LoRA adapters of the seven matrices of each layer."""
    if lora is None:
        return parameters(model)
    shape = trained_shape(model)
    return shape.layers * lora.rank * (11 * shape.hidden + 3 * shape.intermediate)


def trainings(recipe: Recipe) -> dict[str, Training]:
    """Returns the training sections of the recipe by stage."""
    found: dict[str, Training] = {"pretrain": recipe.pretrain, "sft": recipe.sft, "reward": recipe.reward}
    return found | ({"dpo": recipe.dpo} if recipe.dpo else {})


def _row_tokens(recipe: Recipe, section: Training) -> int:
    """Returns the most tokens in a row of a stage, see `training_memory`."""
    context, collect = recipe.model.context, recipe.collect
    if isinstance(section, Dpo):
        return 2 * context
    if isinstance(section, RewardModel):
        answer = context if collect.annotator == "imported" else min(context, collect.max_tokens)
        answers = collect.samples_per_prompt + (1 if section.counterexamples else 0)
        return context + (answers - 1) * answer
    return context


def _logits_gb(model: Model, precision: str, tokens: int, device: str) -> float:
    logits = tokens * vocabulary(model)
    if logits <= LOGITS_AT_ONCE[device]:
        return logits * LOGIT_BYTES / GB
    return min(logits * KEPT_LOGIT_BYTES[precision], LOGITS_AT_ONCE[device] * LOGIT_BYTES) / GB


def _shape(hidden: int, layers: int, heads: int | None) -> Shape:
    return Shape(hidden, layers, heads or hidden // head_size(hidden), -(-hidden * 8 // 3 // 64) * 64)
