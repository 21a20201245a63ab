"""The training loop in a stage, for the comparison with the bare loop; the bench of the loop needs no Ray."""

import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from actors.model.language import build
from actors.model.objectives.language import LanguageObjective
from actors.model.tokenizer import load_tokenizer
from actors.stream import Shard
from actors.training_job import TrainingJob
from cluster.plan import Plan, Share
from cluster.recipe import Cluster, Model, Training
from cluster.session import connect
from pipelines.corpus.tokenizer import save_tokenizer, train_tokenizer
from pipelines.training import fit


def in_a_stage(shape: Model, rows: pa.Table, micro_rows: int, steps: int) -> list[float]:
    """Seconds of every step but the first, one global batch each, as a stage runs it: a Ray worker, the stream of
    rows, the metrics. From metric to metric."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, connect(Cluster(), object_store_gb=0.5):
        root = Path(folder)
        save_tokenizer(train_tokenizer(["to export with the model"], 300), root / "tokenizer", shape.context)
        job = TrainingJob(
            settings=Training(batch_rows=rows.num_rows, micro_batch_rows=micro_rows, checkpoint_every=steps),
            make=partial(_made, shape, root / "tokenizer"),
            shards=[_shard(root / "train.parquet", pa.concat_tables([rows] * steps))],
            held_out=[_shard(root / "held_out.parquet", rows.slice(0, 1))],
            out=root,
            seed=0,
            threads=threads,
            deadline=3600,
        )
        share = Share(threads, float(torch.cuda.is_available()), threads)
        plan = Plan(threads, share.gpus, 8, share, share, share, share, share)
        times = [row["time"] for row in fit(job, plan, "in a stage")]
    return [end - start for start, end in pairwise(times)]


def _shard(path: Path, rows: pa.Table) -> Shard:
    parquet.write_table(rows, path)
    return Shard(str(path), rows.num_rows)


def _made(shape: Model, tokenizer: Path) -> tuple[Any, Any, Any]:
    return build(shape, 0, end_of_turn=4, padding=0), LanguageObjective(), load_tokenizer(tokenizer)
