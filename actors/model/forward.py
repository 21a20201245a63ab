"""The forward pass of a causal language model over packed rows: hidden states, logits and losses."""

import math
from typing import Any

from torch import Tensor

from actors.model.attention.packed import (
    PAD_DOCUMENT_ID,
    attention_mask_for,
    has_one_document_per_row,
    position_ids_within_documents,
)
from actors.model.chunked_cross_entropy import summed_loss, tied_head_and_embeddings, token_losses
from actors.model.expert_balance import auxiliary_loss
from actors.model.parts import trunk
from cluster.runtime.memory import LOGITS_AT_ONCE


def last_hidden_states(
    model: Any, input_ids: Tensor, document_ids: Tensor | None = None, embeddings: Tensor | None = None
) -> Tensor:
    """Computes the last hidden states. Without `document_ids`, a row is one document and padding is at its right end.

    Args:
        input_ids: [B, T].
        document_ids: [B, T], the document of each token within its row; PAD_DOCUMENT_ID where a row is filled up.
        embeddings: [B, T, H], those of the ids, if they have been looked up.

    Returns:
        [B, T, H].
    """
    return _outputs(model, input_ids, document_ids, embeddings).last_hidden_state


def _outputs(
    model: Any, input_ids: Tensor, document_ids: Tensor | None, embeddings: Tensor | None, **further: bool
) -> Any:
    """Computes what a model's trunk does; `further` outputs as well, such as output_router_logits."""
    kwargs = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    # Without a mask half of the attention is not computed: on a CPU 5 % of a step with 135M parameters.
    if document_ids is None or (document_ids.is_cpu and has_one_document_per_row(document_ids)):
        return trunk(model)(**kwargs, use_cache=False, **further)
    return trunk(model)(
        **kwargs,
        attention_mask=attention_mask_for(model, document_ids),
        position_ids=position_ids_within_documents(document_ids),
        use_cache=False,
        **further,
    )


def output_logits(model: Any, states: Tensor) -> Tensor:
    """Computes the logits of the next token. [N, H] -> [N, V]."""
    logits: Tensor = model.get_output_embeddings()(scaled_states(model, states))
    return logits


def scaled_states(model: Any, states: Tensor) -> Tensor:
    """Multiplies states by the factor of the model's logits (Cohere, Granite), which is the same for a head without
    bias. [N, H] -> [N, H]."""
    factor, divisor = (getattr(model.config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    scale = factor / divisor
    return states if scale == 1.0 else states * scale


def next_token_losses(model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Computes the cross-entropy in nats of each target token given the tokens before it, in float32.

    Args:
        input_ids: [B, T].
        loss_mask: bool [B, T]; whether token t is a target. The first token of a document must not be.
        document_ids: as in `last_hidden_states`.

    Returns:
        [N], N the number of targets. Logits are made for these alone, and at most LOGITS_AT_ONCE at a time.
    """
    states = last_hidden_states(model, input_ids, document_ids)
    predictors, targets = _predictors(model, states, input_ids, loss_mask)
    return token_losses(model.get_output_embeddings(), predictors, targets, LOGITS_AT_ONCE[states.device.type])


def next_token_loss(
    model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor | None = None, compiled: bool = False
) -> Tensor:
    """Computes the sum of `next_token_losses`, to be trained on; `compiled` is that of `summed_loss`."""
    return _loss_and_outputs(model, input_ids, loss_mask, document_ids, compiled)[0]


def next_token_and_auxiliary_loss(
    model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Computes `next_token_loss`, and the `auxiliary_loss` of a mixture of experts over all tokens but padding."""
    loss, outputs = _loss_and_outputs(model, input_ids, loss_mask, document_ids, compiled, output_router_logits=True)
    return loss, auxiliary_loss(model, outputs.router_logits, document_ids != PAD_DOCUMENT_ID)


def _loss_and_outputs(
    model: Any, input_ids: Tensor, loss_mask: Tensor, document_ids: Tensor | None, compiled: bool, **further: bool
) -> tuple[Tensor, Any]:
    head, embeddings = tied_head_and_embeddings(model, input_ids) or (model.get_output_embeddings(), None)
    outputs = _outputs(model, input_ids, document_ids, embeddings, **further)
    states, targets = _predictors(model, outputs.last_hidden_state, input_ids, loss_mask)
    return summed_loss(head, states, targets, LOGITS_AT_ONCE[states.device.type], compiled), outputs


def _predictors(model: Any, states: Tensor, input_ids: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the state that predicts each target, of states [B, T, H], and the target's id: [N, H] and [N]."""
    targets = loss_mask[:, 1:]
    return scaled_states(model, states[:, :-1][targets]), input_ids[:, 1:][targets]


def bits_per_byte(loss: float, tokens: float, text_bytes: float) -> float:
    """Converts a loss in nats per token to bits per byte of UTF-8, which is comparable between tokenizers."""
    return loss * tokens / math.log(2) / text_bytes
