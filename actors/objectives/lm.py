"""Next-token prediction, for pre-training and fine-tuning."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from torch import Tensor

from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.expert_balance import balance_coefficient, is_balanced
from actors.model.forward import next_token_and_auxiliary_loss, next_token_loss

# The metric of a mixture of experts: its auxiliary loss, before it is multiplied by the model's coefficient.
AUXILIARY_LOSS = "auxiliary_loss"


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed documents.

    Attributes:
        input_ids: [B, T].
        document_ids: [B, T], the document of each token within its row; PAD_DOCUMENT_ID where a row is filled up.
        loss_mask: bool [B, T], the tokens that are targets.
    """

    input_ids: Tensor
    document_ids: Tensor
    loss_mask: Tensor


class LanguageObjective:
    """The sum of cross-entropies over target tokens; the caller divides it by the targets of the global batch."""

    unit = "tokens"
    dropout = True
    # Whether the operations on each logit are compiled, as of `chunked_cross_entropy.summed_loss`.
    compiled = False

    def collate(self, rows: pa.Table) -> PackedBatch:
        """Makes a batch of packed rows; without a column `loss_mask`, all but a document's first token are targets."""
        input_ids, document_ids = (_matrix(rows, name) for name in ("input_ids", "document_ids"))
        real = document_ids != PAD_DOCUMENT_ID
        loss_mask = _matrix(rows, "loss_mask").bool() if "loss_mask" in rows.column_names else real
        follows = torch.zeros_like(loss_mask)
        follows[:, 1:] = document_ids[:, 1:] == document_ids[:, :-1]
        return PackedBatch(input_ids, document_ids, loss_mask & follows & real)

    def count(self, batch: PackedBatch) -> int:
        """Returns the number of target tokens."""
        return int(batch.loss_mask.sum())

    def loss(self, model: Any, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        """Returns the summed loss in nats, and while a mixture of experts is trained, its auxiliary loss times the
        targets.

        The auxiliary loss is that of this forward pass. Its gradient, times the model's own coefficient, is a part of
        the summed loss's; its value is not, so that losses of steps and of held-out rows are comparable.
        """
        inputs = (model, batch.input_ids, batch.loss_mask, batch.document_ids, self.compiled)
        if not (model.training and is_balanced(model)):
            return next_token_loss(*inputs), {}
        loss, auxiliary = next_token_and_auxiliary_loss(*inputs)
        # Both are summed over targets: a forward pass weighs as much in a step's auxiliary loss as in its loss.
        summed = auxiliary * self.count(batch)
        added = balance_coefficient(model.config) * summed
        return loss + (added - added.detach()), {AUXILIARY_LOSS: float(summed.detach())}


def _matrix(rows: pa.Table, name: str) -> Tensor:
    """Returns a column of lists of one length T as a tensor, int64 [B, T]."""
    values = compute.list_flatten(rows[name]).to_numpy()
    return torch.from_numpy(values.reshape(rows.num_rows, -1).astype(np.int64))
