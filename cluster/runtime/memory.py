"""The shape and size of the models of a run, known from the recipe before anything starts."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.model import Model, head_size
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import Training
from cluster.runtime.start_model import EXPERTS, parameters_in, start_config

GB = 1e9

# Below this size an engine's memory and start-up time are those of its process and not of the model: on CPUs served
# models so small share one.
SMALL_BYTES = 100 << 20
# Bytes of a parameter: float32 weights.
HELD_BYTES = 4
# Bytes of a logit: itself, its softmax and its gradient in float32. They dominate the activations of a small model.
LOGIT_BYTES = 12
# Training makes at most so many logits at a time (actors.model.chunked_cross_entropy): 0.8 GB, and on a GPU 26. Where
# there are more, it keeps each in the type of the matrix products alone, within as many bytes in all.
LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 31}


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
    return _nearest_shape(model.parameters, model.vocabulary, model.hidden, model.layers, model.heads)


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


def whole_model_gb(model: Model) -> float:
    """Returns the size of the model in float32, in GB."""
    return HELD_BYTES * parameters(model) / GB


def served_models(recipe: Recipe) -> int:
    """Counts the models that are served: base, fine-tuned, policy and reward model, the story's visitor's, and one for
    the loop's trials."""
    return 4 + bool(recipe.serve.story) + bool(recipe.loop.canary_share)


def trained_parameters(model: Model, lora: Lora | None) -> int:
    """Counts the trained parameters: all, or those of the LoRA adapters of the seven matrices of each layer."""
    if lora is None:
        return parameters(model)
    shape = trained_shape(model)
    return shape.layers * lora.rank * (11 * shape.hidden + 3 * shape.intermediate)


def trainings(recipe: Recipe) -> dict[str, Training]:
    """Returns the training sections of the recipe by stage, without those of stages that it does not have: pre-training
    without a corpus, and a reward model that is not among the rewards."""
    found: dict[str, Training] = {"pretrain": recipe.pretrain} if recipe.corpus.sources else {}
    found["sft"] = recipe.sft
    if recipe.rlhf.needs_reward_model:
        found["reward"] = recipe.reward
    return found | ({"dpo": recipe.dpo} if recipe.dpo else {})


def reads_by_parts(recipe: Recipe, section: Training | None = None) -> bool:
    """Tells whether each of several workers of a stage, of RLHF without a section, reads only its part of a model's
    files (`actors.model.sharding.weights`). Otherwise each makes the whole model in the machine's memory first: a new
    one, one in a GGUF file, and one with experts."""
    config = start_config(recipe.model)
    if any((config.get(name) or 0) > 1 for name in EXPERTS):
        return False
    start = recipe.model.start_from
    return section is not recipe.pretrain or (start is not None and not start.endswith(".gguf"))


@cache
def _nearest_shape(
    parameters: int, vocabulary: int, hidden: int | None, layers: int | None, heads: int | None
) -> Shape:
    """Searches some ten thousand shapes in 15 ms; cached, because a plan asks for the same few again and again."""
    widths = [hidden] if hidden else list(range(64, 16385, 64))
    depths = [layers] if layers else list(range(2, 129))
    free = not (hidden or layers)
    shapes = [_shape(h, n, heads) for h in widths for n in depths if not free or 40 <= h / n <= 128]
    return min(shapes, key=lambda shape: abs(shape.parameters(vocabulary) - parameters))


def _shape(hidden: int, layers: int, heads: int | None) -> Shape:
    return Shape(hidden, layers, heads or hidden // head_size(hidden), -(-hidden * 8 // 3 // 64) * 64)
