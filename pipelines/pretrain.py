"""Pre-training: predict the next word of packed text. The result continues text; it does not answer."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from actors.stream import shards_in
from actors.training_job import TrainingJob
from cluster.cli import stage_main
from cluster.plan import make_plan
from cluster.recipe import Model, Recipe
from cluster.run import RunFolder, file_fingerprint
from cluster.stages import Result
from pipelines.training import fit, speed


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on the shards of the corpus stage; figures are loss and bits per byte on held-out text."""
    corpus = run.path("corpus")
    plan = make_plan(recipe)
    job = TrainingJob(
        settings=recipe.pretrain,
        make=partial(_model, recipe.model, recipe.seed, corpus / "tokenizer"),
        shards=shards_in(corpus / "shards" / "train"),
        held_out=shards_in(corpus / "shards" / "held_out"),
        out=out,
        seed=recipe.seed,
        threads=plan.trainer.threads,
        deadline=recipe.cluster.deadline_seconds,
        held_out_bytes=json.loads((corpus / "stats.json").read_text())["held_out_bytes"],
    )
    rows = fit(job, plan, "pre-training")
    last = rows[-1]
    return Result(
        metrics={
            "held_out_loss": last["held_out_loss"],
            "bits_per_byte": last["held_out_bits_per_byte"],
            "tokens": sum(row["tokens"] for row in rows),
            **speed(rows),
        },
        weights=file_fingerprint(out / "model.safetensors"),
    )


def _model(model: Model, seed: int, tokenizer_folder: Path) -> tuple[Any, Any, Any]:
    # The worker's alone: the driver waits 10 s less when it does not import what it only names.
    from transformers import AutoTokenizer

    from actors.model.language import build, end_with, start
    from actors.model.objectives.language import LanguageObjective

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    # The base model ends a document, not a turn.
    end = tokenizer.pad_token_id
    language = start(model, tokenizer) if model.start_from else build(model, seed, end_of_turn=end, padding=end)
    end_with(language, end)
    return language, LanguageObjective(), tokenizer


if __name__ == "__main__":
    stage_main("pretrain")
