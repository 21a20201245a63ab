"""DPO, an alternative to reinforcement learning: the fine-tuned model learns from the rankings themselves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from transformers import AutoTokenizer

from actors.model.causal_lm import load
from actors.objectives.dpo import DpoObjective
from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import make_plan
from pipelines.data.rankings import read_rankings
from pipelines.evaluate.stats import proportion
from pipelines.train import best_checkpoint, fit, training_job


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on every pair that a ranking orders, and measures the share of held-out pairs ordered rightly."""
    settings, sft, plan = recipe.dpo, run.path("sft"), make_plan(recipe)
    assert settings is not None, "a stage whose section the recipe lacks is not run"
    rankings = read_rankings(run.path("preferences") / "rankings.parquet")
    counts = {}
    for name in ("train", "held_out"):
        pairs = [pair for row in rankings if row["split"] == name for pair in pairs_of(row)]
        if not pairs:
            raise UserError(f"no ranking of the {name} prompts says of two answers which is better: collect more")
        counts[name] = len(pairs)
        _write_shard(pairs, out / "shards" / name)
    shards, make = out / "shards", partial(_model, sft, settings.beta)
    job = training_job(recipe, settings, make, shards / "train", shards / "held_out", out)
    model = best_checkpoint(fit(job, plan, "dpo"), settings)
    return Result(
        metrics={
            "pairs": counts["train"],
            "pair_accuracy": asdict(proportion(int(model["held_out_right_pairs"]), counts["held_out"])),
            "held_out_loss": model["held_out_loss"],
            "held_out_margin": model["held_out_margins"] / counts["held_out"],
        },
        weights=weights_fingerprint(out),
    )


def pairs_of(row: Mapping[str, Any]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yields prompt, better and worse answer, as token ids, of every pair in a ranking that is not a tie."""
    answers = sorted(zip(row["ranks"], row["answers"], strict=True))
    for (high, chosen), (low, rejected) in combinations(answers, 2):
        if high < low:
            yield row["prompt_token_ids"], chosen, rejected


def _model(sft: Path, beta: float) -> tuple[Any, Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(sft)
    return load(sft), DpoObjective(tokenizer.pad_token_id, beta, load(sft)), tokenizer


def _write_shard(pairs: Sequence[tuple[list[int], list[int], list[int]]], folder: Path) -> None:
    """Writes one row a pair."""
    folder.mkdir(parents=True, exist_ok=True)
    sequences = [prompt + answer for prompt, *answers in pairs for answer in answers]
    prompt_lengths = [len(prompt) for prompt, *answers in pairs for _ in answers]
    lengths = [len(sequence) for sequence in sequences]
    table = pa.table(
        {
            "row_id": pa.array(range(len(pairs)), pa.int64()),
            "input_ids": pa.array(
                [one + other for one, other in zip(sequences[::2], sequences[1::2], strict=True)], pa.list_(pa.int32())
            ),
            "lengths": pa.array(list(zip(lengths[::2], lengths[1::2], strict=True)), pa.list_(pa.int32())),
            "prompt_length": pa.array(prompt_lengths[::2], pa.int32()),
        }
    )
    parquet.write_table(table, folder / "shard-00000.parquet")
