"""Pre-training: next-token prediction on packed text. The result continues text; it does not answer."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import make_plan
from pipelines.train import best_checkpoint, fit, speed_metrics, training_job


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on the shards of the corpus stage, and measures loss and bits per byte on held-out text.

    Raises:
        UserError: the model to start from cannot be loaded.
    """
    if not recipe.corpus.sources:
        return _export_start(recipe, out)
    corpus = run.path("corpus")
    plan = make_plan(recipe)
    shards, settings = corpus / "shards", recipe.pretrain
    job = training_job(
        recipe,
        settings,
        partial(_model, recipe, corpus / "tokenizer"),
        shards / "train",
        shards / "held_out",
        out,
        held_out_bytes=json.loads((corpus / "stats.json").read_text())["held_out_bytes"],
        samples=settings.samples,
        sample_tokens=settings.sample_tokens,
    )
    rows = fit(job, plan, "pre-training")
    model = best_checkpoint(rows, settings)
    return Result(
        metrics={
            "held_out_loss": model["held_out_loss"],
            "bits_per_byte": model["held_out_bits_per_byte"],
            "tokens": sum(row["tokens"] for row in rows),
            **speed_metrics(rows),
            "kept_step": model["step"],
        },
        weights=weights_fingerprint(out),
    )


def _export_start(recipe: Recipe, out: Path) -> Result:
    """Writes the model to start from as the base, where there is no corpus, with the tokens that conversations need.

    Where its files allow it, tensor by tensor: this process never holds the whole model.
    """
    from actors.model.causal_lm import save
    from actors.model.sharding.export import export_shared
    from actors.model.sharding.weights import is_empty, whole_weights
    from actors.model.tokenizer import load_tokenizer
    from actors.trainer.proof import prove_copy, prove_parts
    from pipelines.corpus.tokens.train import save_tokenizer_of

    with tempfile.TemporaryDirectory(dir=out) as folder:
        save_tokenizer_of(str(recipe.model.start_from), Path(folder), recipe.model.context)
        tokenizer = load_tokenizer(folder)
    model = _load_start(recipe, tokenizer, by_parts=True)
    precision = recipe.pretrain.export_precision
    if is_empty(model):
        export_shared(model, tokenizer, out, rank=0, precision=precision, whole=whole_weights(model))
        difference = prove_parts(model, out, precision)
    else:
        save(model, tokenizer, out, precision=precision)
        difference = prove_copy(model, out, precision)
    metrics = {"parameters": model.num_parameters(), "export_difference": difference}
    return Result(metrics=metrics, weights=weights_fingerprint(out))


def _load_start(recipe: Recipe, tokenizer: Any, by_parts: bool | None = None) -> Any:
    """Loads the model to start from. Refuses, before anyone ranks answers, a model that later stages cannot use."""
    from actors.model.causal_lm import load_for_training
    from actors.model.reward_head import require_reward_head
    from actors.model.start_checks import require_no_experts

    model = load_for_training(recipe.model, tokenizer, recipe.seed, by_parts)
    # With DPO there are stages that can use it, and RLHF refuses it by itself.
    if recipe.dpo is None:
        require_no_experts(model.config, recipe.model.start_from)
    if recipe.rlhf.needs_reward_model:
        require_reward_head(model.config, recipe.model.start_from)
    return model


def _model(recipe: Recipe, tokenizer_folder: Path) -> tuple[Any, Any, Any]:
    # Imported by the worker alone: the driver waits 10 s less.
    from transformers import AutoTokenizer

    from actors.model.causal_lm import build, set_end_token
    from actors.objectives.lm import LanguageObjective

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    # The base model ends a document, not a turn.
    end = tokenizer.pad_token_id
    if recipe.model.start_from:
        model = _load_start(recipe, tokenizer)
    else:
        model = build(recipe.model, recipe.seed, end_of_turn=end, padding=end)
    set_end_token(model, end)
    return model, LanguageObjective(), tokenizer
