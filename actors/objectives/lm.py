"""Next-word prediction, for pre-training and fine-tuning."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from torch import Tensor

from actors.model.attention import PAD_DOCUMENT_ID
from actors.model.causal_lm import next_token_loss


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed documents; all [B, T]. `trained` marks the tokens that are targets."""

    input_ids: Tensor
    document_ids: Tensor
    trained: Tensor


class LanguageObjective:
    """Sum of cross-entropies over trained tokens (the caller divides by the tokens of the global batch)."""

    unit = "tokens"
    # Whether the loss is made as `summed_loss` does when it is compiled.
    compiled = False

    def collate(self, rows: pa.Table) -> PackedBatch:
        """Tensors of packed rows; without a `trained` column every token but a document's first is a target."""
        input_ids, document_ids = (_matrix(rows, name) for name in ("input_ids", "document_ids"))
        trained = _matrix(rows, "trained").bool() if "trained" in rows.column_names else document_ids != PAD_DOCUMENT_ID
        follows = torch.zeros_like(trained)
        follows[:, 1:] = document_ids[:, 1:] == document_ids[:, :-1]
        return PackedBatch(input_ids, document_ids, trained & follows & (document_ids != PAD_DOCUMENT_ID))

    def count(self, batch: PackedBatch) -> int:
        """Trained tokens."""
        return int(batch.trained.sum())

    def loss(self, model: Any, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        """The summed loss in nats, and no further figures."""
        return next_token_loss(model, batch.input_ids, batch.trained, batch.document_ids, self.compiled), {}


def _matrix(rows: pa.Table, name: str) -> Tensor:
    values = compute.list_flatten(rows[name]).to_numpy()
    return torch.from_numpy(values.reshape(rows.num_rows, -1).astype(np.int64))
