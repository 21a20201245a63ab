"""A training job of made-up rows, as a stage would make it."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from actors.model.causal_lm import build
from actors.model.tokenizer import load_tokenizer
from actors.objectives.lm import LanguageObjective
from actors.trainer.data import Shard
from actors.trainer.job import TrainingJob
from cluster.recipe.model import Model
from cluster.recipe.training import Training
from pipelines.corpus.tokens.train import save_tokenizer, train_tokenizer


def made_up_job(root: Path, shape: Model, rows: pa.Table, settings: Training, threads: int) -> TrainingJob:
    """Trains a new model on the rows; the first of them is held out too."""
    return TrainingJob(
        settings=settings,
        make=partial(made_up_model, shape, made_up_tokenizer(root, shape)),
        shards=[_shard(root / "train.parquet", rows)],
        held_out=[_shard(root / "held_out.parquet", rows.slice(0, 1))],
        out=root,
        seed=0,
        threads=threads,
        deadline=3600,
    )


def made_up_tokenizer(root: Path, shape: Model) -> Path:
    """Writes a tokenizer to save with a model; returns its folder."""
    folder = root / "tokenizer"
    save_tokenizer(train_tokenizer(["to export with the model"], 300), folder, shape.context)
    return folder


def made_up_model(shape: Model, tokenizer: Path) -> tuple[Any, Any, Any]:
    """Makes a new model, its objective, and a tokenizer to save with it."""
    return build(shape, 0, end_of_turn=4, padding=0), LanguageObjective(), load_tokenizer(tokenizer)


def _shard(path: Path, rows: pa.Table) -> Shard:
    parquet.write_table(rows, path)
    return Shard(str(path), rows.num_rows)
