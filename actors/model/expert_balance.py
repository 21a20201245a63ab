"""The auxiliary loss of a mixture of experts, without which its router comes to give most tokens to few experts."""

from typing import Any

from torch import Tensor

from actors.compat import load_balancing_loss
from cluster.runtime.start_model import EXPERTS

# The factor of the loss, in configurations of JetMoe and of all others.
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def balance_coefficient(config: Any) -> float:
    """Returns the factor by which a model's configuration adds the auxiliary loss; 0 without one or without experts."""
    if not any((getattr(config, attribute, None) or 0) > 1 for attribute in EXPERTS):
        return 0.0
    return float(next((found for name in COEFFICIENTS if (found := getattr(config, name, None))), 0.0))


def is_balanced(model: Any) -> bool:
    """Says whether the auxiliary loss is a part of a model's training as a language model."""
    return balance_coefficient(model.config) > 0 and load_balancing_loss(model) is not None


def auxiliary_loss(model: Any, router_logits: tuple[Tensor, ...], real: Tensor) -> Tensor:
    """Computes E Σ f P over the E experts (Fedus et al. 2021, eq. 4 to 6, of all layers together), by transformers' own
    function for this kind of model.

    f are the experts' shares of the tokens, of which each counts once for every expert that it is given to, and P the
    mean probabilities of the router: of k experts a token the loss is k where all are used alike, and E at most.

    Args:
        router_logits: of each layer that has experts, [B · T, E].
        real: bool [B, T], the tokens that are no padding.

    Returns:
        a scalar.
    """
    function = load_balancing_loss(model)
    assert function is not None
    loss: Tensor = function(router_logits, model.num_experts, model.num_experts_per_tok, real)
    return loss


def unused_auxiliary_loss(model: Any, is_language: bool) -> str:
    """Says that the loss which balances a mixture of experts is not trained on; empty where it is or there is none.

    Args:
        is_language: whether the model is trained as a language model, and not on rankings or pairs.
    """
    coefficient = balance_coefficient(model.config)
    if not coefficient or (is_language and is_balanced(model)):
        return ""
    where = "by this objective" if is_balanced(model) else f"in models of the kind {model.config.model_type}"
    return f"the auxiliary loss that balances the experts (coefficient {coefficient:g}) is not trained on {where}"
