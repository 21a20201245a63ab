"""Rows of made-up documents."""

import numpy as np
import pyarrow as pa


def table(ids: np.ndarray, documents: int) -> pa.Table:
    """Makes packed rows of token ids (rows, context), each of so many documents of one length."""
    document_ids = np.broadcast_to(np.arange(ids.shape[1]) * documents // ids.shape[1], ids.shape)
    return pa.table({"input_ids": pa.array(list(ids)), "document_ids": pa.array(list(document_ids))})
