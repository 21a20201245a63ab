"""Supervised fine-tuning on conversations: the assistant's turns are the targets."""

from functools import partial
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from actors.model.chat.recipe_template import new_tokens, set_template
from actors.model.tokenizer import load_tokenizer
from cluster.recipe.base import Lora
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import FineTuning
from cluster.run.folder import SCRATCH, RunFolder
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import make_plan
from pipelines.sft_data import make_shards
from pipelines.train import best_checkpoint, fit, speed_metrics, training_job

# Metrics of the first step (the model before) and of the step whose model is kept.
HELD_OUT_METRICS = ("held_out_loss_before", "held_out_exact_before", "held_out_loss", "held_out_exact")


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains the base model on the assistant's tokens of every conversation, and on text of the corpus if asked to."""
    base = run.path("base")
    plan = make_plan(recipe)
    tokenizer = _tokenizer(recipe.sft, base, out)
    data_metrics = make_shards(recipe, tokenizer, run.path("corpus") / "shards" / "train", out)
    shards, settings = out / "shards", recipe.sft
    job = training_job(
        recipe,
        settings,
        partial(_model, base, tokenizer, settings.lora, recipe.seed),
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
        weights=weights_fingerprint(out),
    )


def _tokenizer(settings: FineTuning, base: Path, out: Path) -> Path:
    """Returns the folder of the tokenizer to train with: the base's, or one with the recipe's template and end."""
    if not (settings.chat_template or settings.end_token):
        return base
    tokenizer = load_tokenizer(base)
    set_template(tokenizer, settings.chat_template, settings.end_token)
    tokenizer.save_pretrained(out / SCRATCH / "tokenizer")
    return out / SCRATCH / "tokenizer"


def _model(base: Path, tokenizer_folder: Path, settings: Lora | None, seed: int) -> tuple[Any, Any, Any]:
    # Imported by the worker alone: the driver waits 10 s less.
    from transformers import AutoTokenizer

    from actors.model import lora
    from actors.model.causal_lm import grow_embeddings, load, set_end_token
    from actors.objectives.lm import LanguageObjective

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = load(base)
    grow_embeddings(model, tokenizer, seed)
    # From here on the model ends its turn, where the base model ended a document.
    end = Chat(tokenizer).end_of_turn_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    set_end_token(model, end)
    if settings:
        lora.add(model, settings, seed, new_tokens(tokenizer, AutoTokenizer.from_pretrained(base)))
    return model, LanguageObjective(), tokenizer
