"""Supervised fine-tuning on conversations: the assistant's turns are the targets."""

import random
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.model.chat import Chat
from actors.model.templates import new_tokens, set_template
from actors.model.tokenizer import load_tokenizer
from cluster.errors import UserError
from cluster.recipe.base import Lora
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import FineTuning
from cluster.run.folder import SCRATCH, RunFolder, file_fingerprint
from cluster.run.stages import Result
from cluster.runtime.plan import make_plan
from pipelines.data.chat_formats import read_conversations
from pipelines.data.pack_chats import render, write_packed
from pipelines.data.source_rows import quarantine
from pipelines.data.text_rows import add_text_rows
from pipelines.train import best_checkpoint, fit, speed_metrics, training_job

# The rows that cannot be used, a JSON line each: place, reason, excerpt.
QUARANTINE = "quarantine.jsonl"
# Metrics of the first step (the model before) and of the step whose model is kept.
HELD_OUT_METRICS = ("held_out_loss_before", "held_out_exact_before", "held_out_loss", "held_out_exact")


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains the base model on the assistant's tokens of every conversation, and on text of the corpus if asked to."""
    base = run.path("base")
    plan = make_plan(recipe)
    tokenizer = _tokenizer(recipe.sft, base, out)
    data_metrics = _prepare(recipe, tokenizer, out)
    shards, settings = out / "shards", recipe.sft
    if settings.pretrain_share:
        conversations, text = shards / "train" / "shard-00000.parquet", run.path("corpus") / "shards" / "train"
        data_metrics["text_rows"] = add_text_rows(conversations, text, settings.pretrain_share, recipe.seed)
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
        weights=file_fingerprint(out / "model.safetensors"),
    )


def _tokenizer(settings: FineTuning, base: Path, out: Path) -> Path:
    """Returns the folder of the tokenizer to train with: the base's, or one with the recipe's template and end."""
    if not (settings.chat_template or settings.end_token):
        return base
    tokenizer = load_tokenizer(base)
    set_template(tokenizer, settings.chat_template, settings.end_token)
    tokenizer.save_pretrained(out / SCRATCH / "tokenizer")
    return out / SCRATCH / "tokenizer"


def _prepare(recipe: Recipe, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Writes the shards, with whole conversations held out, and the quarantine.

    Returns:
        Metrics of the data: conversations used, cut and too long, packed rows, rows that could not be used, layouts
        of the sources, and the fields of their rows that nothing reads.

    Raises:
        UserError: there are too few conversations to train on, or too many rows that cannot be used.
    """
    settings, context = recipe.sft, recipe.model.context
    found = read_conversations(settings.sources, recipe.seed)
    rendered = render(found.items, tokenizer, context)
    bad, total = [*found.bad, *rendered.bad], len(found.items) + len(found.bad)
    quarantine(bad, total, settings.max_bad_share, out / QUARANTINE, "sft.sources", "sft.max_bad_share")
    if len(rendered.rows) < 2:
        raise UserError(
            f"of {total} conversations in sft.sources, {len(rendered.rows)} fit into "
            f"model.context = {context} tokens: two are needed, one to hold out"
        )
    random.Random(f"sft {recipe.seed}").shuffle(rendered.rows)
    held_out = max(1, round(len(rendered.rows) * settings.held_out_share))
    padding = Chat.of(tokenizer).padding_id
    parts = {"held_out": rendered.rows[:held_out], "train": rendered.rows[held_out:]}
    rows = {
        name: write_packed(list(chain.from_iterable(part)), context, padding, out / "shards" / name)
        for name, part in parts.items()
    }
    for count, what in (
        (len(bad), f"rows cannot be used; {out / QUARANTINE} lists them"),
        (rendered.too_long, f"conversations do not fit into {context} tokens"),
        (rendered.cut, f"conversations lost what does not fit into {context} tokens"),
        *((count, f"rows have a field {name} that nothing reads") for name, count in sorted(found.ignored.items())),
    ):
        if count:
            Console().print(f"fine-tuning: {count:,} of {total:,} {what}", markup=False, highlight=False)
    return {
        "conversations": len(rendered.rows),
        "too_long": rendered.too_long,
        "cut": rendered.cut,
        "bad": len(bad),
        "rows": rows["train"],
        "layouts": found.layouts,
        "ignored_fields": found.ignored,
    }


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
