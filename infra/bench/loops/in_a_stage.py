"""The training loop in a stage, for the comparison with the bare loop; the bench of the loop needs no Ray."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import torch

from cluster.recipe.model import Cluster, Model
from cluster.recipe.training import Training
from cluster.runtime.plan import Allocation, Plan
from cluster.runtime.session import connect
from infra.bench.loops.job import made_up_job
from pipelines.train import fit


def in_a_stage(shape: Model, rows: pa.Table, micro_rows: int, steps: int) -> list[float]:
    """Measures the seconds of every step but the first, one global batch each, as a stage runs it: a Ray worker, the
    stream of rows, the metrics. A step takes from one row of metrics to the next."""
    threads = torch.get_num_threads()
    settings = Training(batch_rows=rows.num_rows, micro_batch_rows=micro_rows, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder, connect(Cluster(), object_store_gb=0.5):
        job = made_up_job(Path(folder), shape, pa.concat_tables([rows] * steps), settings, threads)
        share = Allocation(threads, float(torch.cuda.is_available()), threads)
        plan = Plan(threads, share.gpus, 8, share, share, share, share, share)
        times = [row["time"] for row in fit(job, plan, "in a stage")]
    return [end - start for start, end in pairwise(times)]
