"""Supervised fine-tuning on conversations: the assistant's turns are the targets."""

import random
from functools import partial
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from pipelines.data.chat_formats import read_conversations
from pipelines.data.pack_chats import render, write_packed
from pipelines.train import best_checkpoint, fit, speed_metrics, training_job

# Metrics of the first step (the model before) and of the step whose model is kept.
HELD_OUT_METRICS = ("held_out_loss_before", "held_out_exact_before", "held_out_loss", "held_out_exact")


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains the base model on the assistant's tokens of every conversation."""
    base = run.path("base")
    plan = make_plan(recipe)
    data_metrics = _prepare(recipe, base, out)
    shards, settings = out / "shards", recipe.sft
    job = training_job(
        recipe,
        settings,
        partial(_model, base, settings.lora, recipe.seed),
        shards / "train",
        shards / "held_out",
        out,
        samples=settings.samples,
        sample_tokens=settings.sample_tokens,
    )
    rows = fit(job, plan, "fine-tuning")
    model = best_checkpoint(rows, settings)
    return Result(
        metrics={
            **data_metrics,
            **{name: row[name] for row in (rows[0], model) for name in HELD_OUT_METRICS if name in row},
            "tokens": sum(row["tokens"] for row in rows),
            **speed_metrics(rows),
            "kept_step": model["step"],
        },
        weights=file_fingerprint(out / "model.safetensors"),
    )


def _prepare(recipe: Recipe, base: Path, out: Path) -> dict[str, Any]:
    """Writes the shards, with whole conversations held out.

    Returns:
        Metrics of the data: conversations used and too long, packed rows, and layouts of the sources.

    Raises:
        UserError: there are too few conversations to train on.
    """
    settings, context = recipe.sft, recipe.model.context
    found = read_conversations(settings.sources, recipe.seed)
    rendered = render(found.messages, base, context)
    if len(rendered) < 2:
        raise UserError(
            f"of {len(found.messages)} conversations in sft.sources, {len(rendered)} fit into "
            f"model.context = {context} tokens: two are needed, one to hold out"
        )
    random.Random(f"sft {recipe.seed}").shuffle(rendered)
    held_out = max(1, round(len(rendered) * settings.held_out_share))
    padding = Chat.of(base).padding_id
    write_packed(rendered[:held_out], context, padding, out / "shards" / "held_out")
    rows = write_packed(rendered[held_out:], context, padding, out / "shards" / "train")
    too_long = len(found.messages) - len(rendered)
    return {"conversations": len(rendered), "too_long": too_long, "rows": rows, "layouts": found.layouts}


def _model(base: Path, settings: Lora | None, seed: int) -> tuple[Any, Any, Any]:
    # Imported by the worker alone: the driver waits 10 s less.
    from transformers import AutoTokenizer

    from actors.model import lora
    from actors.model.causal_lm import load, set_end_token
    from actors.objectives.lm import LanguageObjective

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load(base)
    # From here on the model ends its turn, where the base model ended a document.
    set_end_token(model, tokenizer.eos_token_id)
    if settings:
        lora.add(model, settings, seed)
    return model, LanguageObjective(), tokenizer
