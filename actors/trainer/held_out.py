"""The held-out rows of a training job, and the metrics that each checkpoint measures on them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import torch

from actors.model.forward import bits_per_byte
from actors.model.generation import Opening, continuation_metrics, continuations, openings
from actors.model.microbatch import DataParallelRank, Objective, evaluate, sum_over_workers
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.kto import KtoObjective
from actors.trainer.data import Shard
from actors.trainer.job import TrainingJob
from cluster.errors import UserError

# The continuations at a checkpoint that are kept to be read.
SHOWN_SAMPLES = 8
# Rows whose tokens are counted at once.
COUNTED_ROWS = 4096


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows, the same at every checkpoint of a run.

    Attributes:
        rows: those that are measured: all, or a random sample.
        bytes_per_token: UTF-8 bytes of all held-out text for each of its target tokens, where they are known.
        openings: held-out texts that the model continues.
    """

    rows: pa.Table
    bytes_per_token: float | None
    openings: list[Opening]

    @classmethod
    def of(cls, job: TrainingJob, objective: Objective, vocabulary: int, worker: DataParallelRank) -> "HeldOut":
        """Reads `settings.evaluation_rows` held-out rows, drawn from the job's seed; every worker has to call it.

        Raises:
            UserError: one of them has a token that the model has no embedding for.
        """
        total = sum(shard.rows for shard in job.held_out)
        chosen = random.Random(f"held out {job.seed}").sample(range(total), min(total, job.settings.evaluation_rows))
        rows = pa.concat_tables(_rows(job.held_out, sorted(chosen)))
        check_ids(rows, vocabulary, "a held-out row")
        tokens = _tokens(job.held_out, objective, worker) if job.held_out_bytes else 0.0
        return cls(
            rows=rows,
            bytes_per_token=job.held_out_bytes / tokens if job.held_out_bytes and tokens else None,
            openings=openings([rows], job.samples) if job.samples else [],
        )

    def measure(
        self, job: TrainingJob, model: WithLoss, tokenizer: Any, worker: DataParallelRank, compiled: bool
    ) -> dict[str, Any]:
        """Computes the loss on the rows, and continues the openings; every worker has to call it.

        Args:
            compiled: whether the model's layers are; rows of other lengths would have them compiled again.

        Returns:
            Metrics of a step, the objective's own as held_out_NAME.
        """
        objective, end = model.objective, model.model.config.eos_token_id
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            rows = self.rows
            if isinstance(objective, KtoObjective):
                rows = objective.with_reference_point(model, rows, worker)
            found = evaluate(model, objective, [rows], worker)
            written = continuations(model, self.openings, job.sample_tokens, end, worker) if self.openings else []
        values: dict[str, Any] = {f"held_out_{name}": value for name, value in found.items()}
        values["held_out_rows"] = self.rows.num_rows
        if self.bytes_per_token and found:
            tokens = found[objective.unit]
            values["held_out_bits_per_byte"] = bits_per_byte(found["loss"], tokens, tokens * self.bytes_per_token)
        if self.openings:
            values |= continuation_metrics(tokenizer, self.openings, written, SHOWN_SAMPLES)
        return values


def check_ids(rows: pa.Table, vocabulary: int, where: str) -> None:
    """Checks that every token id has an embedding: a GPU would stop with an error that names nothing.

    Raises:
        UserError: a token id is not in the vocabulary.
    """
    limits = compute.min_max(compute.list_flatten(rows["input_ids"])).as_py()
    for found in (limits["min"], limits["max"]):
        if found is not None and not 0 <= found < vocabulary:
            raise UserError(
                f"{where} holds the token id {found}, and the model has {vocabulary} embeddings: it was tokenized for "
                "another model; run the stage that wrote it again"
            )


def _rows(shards: Sequence[Shard], chosen: Sequence[int]) -> Iterator[pa.Table]:
    """Yields the chosen rows of each shard; `chosen` are places in all shards together, in order."""
    begin = 0
    for shard in shards:
        own = [place - begin for place in chosen if begin <= place < begin + shard.rows]
        if own:
            yield parquet.read_table(shard.path).take(own)
        begin += shard.rows


def _tokens(shards: Sequence[Shard], objective: Objective, worker: DataParallelRank) -> float:
    """Counts the target tokens of all held-out rows, of which each worker reads its share of the shards."""
    total = 0
    for shard in shards[worker.rank :: worker.world_size]:
        with parquet.ParquetFile(shard.path) as file:
            for batch in file.iter_batches(COUNTED_ROWS):
                total += objective.count(objective.collate(pa.Table.from_batches([batch])))
    return sum_over_workers(total, {}, worker)[0]
