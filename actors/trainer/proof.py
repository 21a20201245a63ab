"""The proof of an export: the written folder, loaded afresh, has the loss of the model in memory on held-out rows."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from actors.model.attention.packed import PAD_DOCUMENT_ID
from actors.model.causal_lm import from_pretrained_kwargs, load
from actors.model.microbatch import DataParallelRank, evaluate, sum_over_workers, to_device
from actors.model.reward_head import load_reward_model
from actors.model.sharding.export import rounded, stored_once
from actors.model.sharding.fsdp import ShardedModel, WithLoss
from actors.model.sharding.weights import StoredWeights, empty_model, first_layers, whole_weights
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.objectives.lm import LanguageObjective, PackedBatch
from actors.trainer.data import Shard
from cluster.errors import StageError
from cluster.recipe.base import Precision
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH

# Held-out rows that are computed twice. A wrong weight changes the loss of every token.
PROOF_ROWS = 2
# Tokens of the row that takes the place of held-out rows where there are none.
PROOF_TOKENS = 64
# Both losses are computed in float32, in which sums in another order differ by some 1e-6 of them; a GPU has other
# kernels for packed rows than for one document.
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
# The tolerance for a model that was rounded to bfloat16, whose eight bits err by 0.2 % at most.
ROUNDED_TOLERANCE = 1e-3
# In the scratch folder: the loss of the model in memory when it was exported, which may be long before the last step.
EXPORTED = "exported.json"


def proof_rows(shards: Sequence[Shard]) -> pa.Table:
    """Reads the first held-out rows."""
    with parquet.ParquetFile(shards[0].path) as file:
        return pa.Table.from_batches([next(file.iter_batches(PROOF_ROWS))])


def note_export(model: WithLoss, rows: pa.Table, out: Path, worker: DataParallelRank) -> None:
    """Writes down the loss of the model that is exported; every worker has to call it."""
    loss = _loss_in_memory(model, rows, worker)
    if worker.rank == 0:
        (out / SCRATCH).mkdir(exist_ok=True)
        write_json(out / SCRATCH / EXPORTED, loss)


def prove_export(
    objective: Any, rows: pa.Table, out: Path, worker: DataParallelRank, precision: Precision = "float32"
) -> float:
    """Loads an exported model afresh, and compares its loss with the one in memory.

    A language model is called as anyone would: by transformers, one document at a time, without packing, and its loss
    is computed from its logits. Every worker has to call it. Workers that share models load this one as they do others,
    each its part.

    Returns:
        The absolute difference of the losses.

    Raises:
        StageError: they differ.
    """
    if worker.world_size > 1:
        # The other workers wait until the first one has written all files.
        dist.barrier()
    found = _loss_afresh(_proof_of(objective), rows, out, worker)
    expected = json.loads((out / SCRATCH / EXPORTED).read_text(encoding="utf-8")) if worker.rank == 0 else 0.0
    expected, _ = sum_over_workers(expected, {}, worker)
    return _require_equal(out, expected, found, _tolerance(worker.device.type, precision))


def prove_copy(model: Any, out: Path, precision: Precision = "float32", batch: PackedBatch | None = None) -> float:
    """Compares a model that was saved as it is with its folder or GGUF file, loaded afresh.

    Args:
        model: in float32.
        out: the folder or file.
        precision: the precision that the weights there were rounded to, unlike those of the model.
        batch: held-out rows; None for a row of the vocabulary's first tokens.

    Returns:
        The absolute difference of the losses.

    Raises:
        StageError: their losses differ.
    """
    batch = vocabulary_row(model) if batch is None else batch
    fresh = AutoModelForCausalLM.from_pretrained(**from_pretrained_kwargs(out), dtype=torch.float32)
    return _require_equal(out, mean_loss(model, batch), mean_loss(fresh, batch), _tolerance("cpu", precision))


def prove_parts(model: Any, out: Path, precision: Precision = "float32") -> float:
    """Compares the tensors that `export_shared` wrote of an `empty_model` with those that were to be written, one by
    one, and the first layers of both as `prove_copy` does, so that neither is ever held whole.

    Returns:
        The absolute difference of the losses.

    Raises:
        StageError: a tensor is missing or another, or the losses differ.
    """
    whole, written = whole_weights(model), StoredWeights.of(out)
    expected = stored_once(model)
    wrong = sorted(expected.keys() ^ written.files.keys()) or [
        name
        for name, own in expected.items()
        if not torch.equal(written.tensor(name), rounded(whole(name, own), precision))
    ]
    fresh = empty_model(AutoModelForCausalLM, out)
    if wrong or fresh is None:
        raise StageError(
            f"the model in {out} is not the one that was read: {wrong[0] if wrong else 'its shape'} differs"
        )
    batch, (one, other) = vocabulary_row(model), map(first_layers, (model, fresh))
    return _require_equal(out, mean_loss(one, batch), mean_loss(other, batch), _tolerance("cpu", precision))


def vocabulary_row(model: Any) -> PackedBatch:
    """Returns a row of the vocabulary's first tokens."""
    ids = torch.arange(min(PROOF_TOKENS, model.get_input_embeddings().num_embeddings)).unsqueeze(0)
    return PackedBatch(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))


@torch.no_grad()
def mean_loss(model: Any, batch: PackedBatch) -> float:
    """Computes the loss of packed rows by `language_loss`, a target on average."""
    return float(language_loss(model.eval(), batch)) / max(1, int(batch.loss_mask.sum()))


def _tolerance(device: str, precision: Precision) -> float:
    return TOLERANCE[device] if precision == "float32" else max(TOLERANCE[device], ROUNDED_TOLERANCE)


def _require_equal(out: Path, expected: float, found: float, tolerance: float) -> float:
    if not abs(found - expected) <= tolerance * max(1.0, abs(expected)):
        raise StageError(
            f"the model in {out} is not the one that was trained: loaded afresh its loss on held-out rows is "
            f"{found:.6f}, and that of the model in memory is {expected:.6f}; do not use it, and report its "
            "kind (model_type in its config.json)"
        )
    return abs(found - expected)


def _loss_in_memory(model: WithLoss, rows: pa.Table, worker: DataParallelRank) -> float:
    with torch.compiler.set_stance("force_eager"), model.measuring(_proof_of(model.objective)) as objective:
        found = evaluate(model, objective, [rows], replace(worker, precision="float32"))
    return float(found.get("loss", 0.0))


def _proof_of(objective: Any) -> Any:
    """Returns the objective to compare losses by: `proof` of an objective whose own loss needs a reference too."""
    return getattr(objective, "proof", objective)


@torch.no_grad()
def _loss_afresh(objective: Any, rows: pa.Table, out: Path, worker: DataParallelRank) -> float:
    batch = objective.collate(rows)
    total = objective.count(batch)
    loader = load_reward_model if isinstance(objective, BradleyTerryObjective) else load
    loss_of = language_loss if isinstance(objective, LanguageObjective) else _first(objective.loss)
    # In float32, and all workers the same rows: each gathers the weights of a layer when the others do.
    model = ShardedModel(loader(out).eval(), worker.world_size, worker.device, nullcontext)
    loss = model(loss_of, to_device(batch, worker.device))
    return float(loss) / total if total else 0.0


def _first(function: Callable[..., tuple[Tensor, Any]]) -> Callable[..., Tensor]:
    return lambda *arguments: function(*arguments)[0]


def language_loss(model: Any, batch: PackedBatch) -> Tensor:
    """Computes the summed loss of packed rows by the model's own logits, each document alone."""
    loss = torch.zeros((), device=batch.input_ids.device)
    for ids, documents, mask in zip(batch.input_ids, batch.document_ids, batch.loss_mask, strict=True):
        for document in documents.unique():
            own = documents == document
            targets = mask[own][1:]
            if document == PAD_DOCUMENT_ID or not targets.any():
                continue
            logits = model(input_ids=ids[own].unsqueeze(0)).logits[0, :-1]
            loss += functional.cross_entropy(logits[targets].float(), ids[own][1:][targets], reduction="sum")
    return loss
