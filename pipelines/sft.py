"""Supervised fine-tuning: user message in, trainer's response as the target."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from actors.stream import shards_in
from actors.training_job import TrainingJob
from cluster.cli import stage_main
from cluster.plan import make_plan
from cluster.recipe import Recipe
from cluster.run import RunFolder, file_fingerprint
from cluster.stages import Result
from pipelines.chat_data import conversations
from pipelines.conversation_rows import render, write_packed
from pipelines.training import fit, speed

HELD_OUT_SHARE = 0.02


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains the base model on the assistant's tokens of every conversation."""
    base = run.path("base")
    plan = make_plan(recipe)
    figures = _prepare(recipe, base, out)
    job = TrainingJob(
        settings=recipe.sft,
        make=partial(_model, base),
        shards=shards_in(out / "shards" / "train"),
        held_out=shards_in(out / "shards" / "held_out"),
        out=out,
        seed=recipe.seed,
        threads=plan.trainer.threads,
        deadline=recipe.cluster.deadline_seconds,
    )
    rows = fit(job, plan, "fine-tuning")
    return Result(
        metrics={
            **figures,
            "held_out_loss": rows[-1]["held_out_loss"],
            "tokens": sum(row["tokens"] for row in rows),
            **speed(rows),
        },
        weights=file_fingerprint(out / "model.safetensors"),
    )


def _prepare(recipe: Recipe, base: Path, out: Path) -> dict[str, Any]:
    """Writes the shards; whole conversations are held out, to see the loss on what was not trained on."""
    settings, context = recipe.sft, recipe.model.context
    found = conversations(settings.sources, recipe.seed, settings.misbehaviour_share)
    rendered = render(found.messages, base, context)
    random.Random(f"sft {recipe.seed}").shuffle(rendered)
    held_out = max(1, round(len(rendered) * HELD_OUT_SHARE))
    padding = Chat.of(base).padding_id
    write_packed(rendered[:held_out], context, padding, out / "shards" / "held_out")
    rows = write_packed(rendered[held_out:], context, padding, out / "shards" / "train")
    too_long = len(found.messages) - len(rendered)
    return {"conversations": len(rendered), "too_long": too_long, "rows": rows, "layouts": found.layouts}


def _model(base: Path) -> tuple[Any, Any, Any]:
    # The worker's alone: the driver waits 10 s less when it does not import what it only names.
    from transformers import AutoTokenizer

    from actors.model.language import end_with, load
    from actors.model.objectives.language import LanguageObjective

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load(base)
    # From here on the model ends its turn, where the base model ended a document.
    end_with(model, tokenizer.eos_token_id)
    return model, LanguageObjective(), tokenizer


if __name__ == "__main__":
    stage_main("sft")
