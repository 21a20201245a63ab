"""The parts of a causal language model that training touches, under the names of any architecture."""

from typing import Any

from torch import nn

from cluster.errors import UserError

# Names of the list of layers: of Llama and most others, of GPT-2's and Falcon's kind, and of MPT's.
LAYERS = ("layers", "h", "blocks")


def trunk(model: Any) -> Any:
    """Returns the module that computes hidden states: `model.model`, or `transformer`, `gpt_neox` and others."""
    return getattr(model, model.base_model_prefix)


def layers_of(model: Any) -> nn.ModuleList:
    """Returns the layers of a model's trunk.

    Raises:
        UserError: it has no list of layers.
    """
    inner = getattr(model, model.base_model_prefix, None)
    # OPT's and BART's kinds keep them in a decoder.
    for module in (inner, getattr(inner, "decoder", None)):
        for name in LAYERS:
            if isinstance(found := getattr(module, name, None), nn.ModuleList):
                return found
    raise UserError(f"a model of the kind {model.config.model_type} has no list of layers")


def has_known_parts(model: Any) -> bool:
    """Says whether a model has a trunk with layers, and an output head."""
    if not hasattr(model, model.base_model_prefix) or model.get_output_embeddings() is None:
        return False
    try:
        return len(layers_of(model)) > 0
    except UserError:
        return False
