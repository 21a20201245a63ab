"""Preference optimization, an alternative to reinforcement learning: the fine-tuned model learns from the judgements
themselves, by DPO, IPO or KTO."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from actors.model import lora
from actors.model.causal_lm import load
from actors.objectives.dpo import PairObjective
from actors.objectives.kto import KtoObjective
from actors.objectives.reference import Reference
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import Dpo
from cluster.run.folder import RunFolder
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import make_plan
from pipelines.data.preferences.preference_rows import JudgedAnswers, answers_of, pairs_of, with_mismatched, write_shard
from pipelines.data.preferences.rankings import judgement_weight, read_rankings, read_unpaired, require_judgements
from pipelines.evaluate.stats import proportion
from pipelines.train import best_checkpoint, fit, training_job


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on every pair that a ranking orders, or on every judged answer, and measures the share of the held-out
    ones that come out as judged."""
    settings, sft, plan = recipe.dpo, run.path("sft"), make_plan(recipe)
    assert settings is not None, "a stage whose section the recipe lacks is not run"
    counts, left_out = {}, 0
    for name in ("train", "held_out"):
        rows, without_weight = _rows(recipe, settings, run.path("preferences") / "rankings.parquet", name)
        write_shard(rows, out / "shards" / name)
        counts[name], left_out = len(rows), left_out + without_weight
    shards, make = out / "shards", partial(_model, sft, settings, recipe.seed)
    job = training_job(recipe, settings, make, shards / "train", shards / "held_out", out)
    model = best_checkpoint(fit(job, plan, settings.loss), settings)
    unit, accuracy = ("answers", "answer_accuracy") if settings.loss == "kto" else ("pairs", "pair_accuracy")
    measured = int(model[f"held_out_{unit}"])
    point = {"reference_point": model["held_out_reference_points"] / measured} if settings.loss == "kto" else {}
    return Result(
        metrics={
            "loss": settings.loss,
            unit: counts["train"],
            "left_out_by_weight": left_out,
            accuracy: asdict(proportion(int(model[f"held_out_right_{unit}"]), measured)),
            "held_out_loss": model["held_out_loss"],
            "held_out_margin": model["held_out_margins"] / measured,
            **point,
        },
        weights=weights_fingerprint(out),
    )


def _rows(recipe: Recipe, settings: Dpo, path: Path, split: str) -> tuple[list[JudgedAnswers], int]:
    """Returns the rows to train on from the judgements of a split, and the number of those whose weight is 0.

    Raises:
        UserError: there is none.
    """
    require_judgements(path, split, settings)
    judgements = read_rankings(path, split)
    if settings.loss == "kto":
        judgements += read_unpaired(path, split)
    weighted = [(row, weight) for row in judgements if (weight := judgement_weight(row, settings)) > 0]
    left_out = len(judgements) - len(weighted)
    if settings.loss == "kto":
        answers = [answer for row, weight in weighted for answer in answers_of(row, weight)]
        return with_mismatched(answers, recipe.model.context, recipe.seed), left_out
    return [pair for row, weight in weighted for pair in pairs_of(row, weight)], left_out


def _model(sft: Path, settings: Dpo, seed: int) -> tuple[Any, Any, Any]:
    tokenizer, model = AutoTokenizer.from_pretrained(sft), load(sft)
    if settings.lora:
        lora.add(model, settings.lora, seed)
    reference, padding = Reference(None if settings.lora else load(sft)), tokenizer.pad_token_id
    if settings.loss == "kto":
        weights = settings.desirable_weight, settings.undesirable_weight
        return model, KtoObjective(padding, reference, settings.beta, *weights), tokenizer
    return model, PairObjective(padding, reference, settings.beta, settings.loss, settings.label_smoothing), tokenizer
