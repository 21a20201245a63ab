"""The held-out rows that a run is measured on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from actors.model.causal_lm import load
from actors.model.microbatch import DataParallelRank, evaluate
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective
from actors.trainer.data import Shard
from actors.trainer.held_out import HeldOut
from actors.trainer.job import TrainingJob
from cluster.errors import UserError
from cluster.recipe.training import Training
from tests.tiny import tiny_tokenizer, write_tiny_model

WORKER = DataParallelRank(0, 1, 4, "float32", torch.device("cpu"))
OBJECTIVE = LanguageObjective()


def a_job(tmp_path: Path, rows: int) -> TrainingJob:
    chance, shards = np.random.default_rng(5), []
    for number, size in enumerate((7, 12, 1)):
        ids = [chance.integers(5, 300, 16).tolist() for _ in range(size)]
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.table({"input_ids": ids, "document_ids": [[0] * 9 + [1] * 7] * size}), path)
        shards.append(Shard(str(path), size))
    return TrainingJob(
        settings=Training(evaluation_rows=rows),
        make=lambda: (None, None, None),
        shards=[],
        held_out=shards,
        out=tmp_path,
        seed=3,
        threads=1,
        deadline=60,
        held_out_bytes=900,
        samples=2,
    )


def test_a_sample_of_the_held_out_rows_stays_the_same_throughout_a_run(tmp_path: Path):
    job = a_job(tmp_path, rows=8)
    held_out = HeldOut.of(job, OBJECTIVE, 400, WORKER)
    everything = pa.concat_tables([parquet.read_table(shard.path) for shard in job.held_out])
    chosen = held_out.rows["input_ids"].to_pylist()
    places = [everything["input_ids"].to_pylist().index(row) for row in chosen]
    assert len(set(places)) == 8
    assert max(places) > 6, "from more shards than the first"
    assert HeldOut.of(job, OBJECTIVE, 400, WORKER).rows == held_out.rows
    assert HeldOut.of(replace(job, seed=4), OBJECTIVE, 400, WORKER).rows != held_out.rows
    with pytest.raises(UserError, match="a held-out row holds the token id"):
        HeldOut.of(job, OBJECTIVE, 200, WORKER)


@pytest.mark.parametrize("rows", [8, 1000])
def test_loss_and_bits_per_byte_are_those_of_the_sample(tmp_path: Path, rows: int):
    write_tiny_model(tmp_path / "model", seed=1, end_id=0)
    model = WithLoss(load(tmp_path / "model"), OBJECTIVE)
    job = a_job(tmp_path, rows)
    held_out = HeldOut.of(job, OBJECTIVE, 400, WORKER)
    found = held_out.measure(job, model, tiny_tokenizer(), WORKER, compiled=False)
    assert found["held_out_rows"] == held_out.rows.num_rows == min(rows, 20)
    assert found["held_out_loss"] == pytest.approx(evaluate(model, OBJECTIVE, [held_out.rows], WORKER)["loss"])
    # The targets of a row are all its tokens but the first of each of its two documents.
    assert found["held_out_tokens"] == 14 * min(rows, 20)
    assert found["held_out_bits_per_byte"] == pytest.approx(found["held_out_loss"] / np.log(2) * 14 * 20 / 900)
    assert len(found["samples"]) == 2
