"""The reward model: learns the rankings, so that it can stand in for the people who made them."""

from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from transformers import AutoTokenizer

from actors.model.heads import load_reward_model, with_new_head
from actors.model.objectives.preference import PreferenceObjective, sequence_rewards
from actors.reward import BATCH_ROWS, NORMALISATION
from actors.stream import shards_in
from actors.trainer import TrainingJob
from cluster.cli import stage_main
from cluster.failures import UserError
from cluster.plan import make_plan
from cluster.recipe import Recipe
from cluster.run import RunFolder, file_fingerprint, write_json
from cluster.stages import Result
from pipelines.figures import proportion
from pipelines.training import fit


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on the rankings of the collect stage; the figure is the accuracy on pairs of prompts it never saw."""
    sft, plan = run.path("sft"), make_plan(recipe)
    rankings = parquet.read_table(run.path("preferences") / "rankings.parquet").to_pylist()
    parts = {name: [row for row in rankings if row["split"] == name] for name in ("train", "held_out")}
    if not all(parts.values()):
        raise UserError(f"{len(rankings)} rankings are too few to train on some and hold out others: collect more")
    for name, rows in parts.items():
        _write_shard(rows, out / "shards" / name)
    shards = shards_in(out / "shards" / "train")
    job = TrainingJob(
        settings=recipe.reward,
        make=partial(_model, sft),
        rows=len(parts["train"]),
        held_out=shards_in(out / "shards" / "held_out"),
        out=out,
        threads=plan.trainer.threads,
    )
    fit(job, shards, recipe.seed, plan, "reward model", recipe.cluster.deadline_seconds)
    torch.set_num_threads(plan.learner.threads)
    scores = {name: _scores(out, rows) for name, rows in parts.items()}
    _write_normalisation(scores["train"], out)
    return Result(
        metrics={
            "rankings": len(parts["train"]),
            "pair_accuracy": _accuracy(parts["held_out"], scores["held_out"]),
            "train_pair_accuracy": _accuracy(parts["train"], scores["train"]),
        },
        weights=file_fingerprint(out / "model.safetensors"),
    )


def _model(sft: Path) -> tuple[Any, Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(sft)
    return with_new_head(sft), PreferenceObjective(tokenizer.pad_token_id), tokenizer


def _write_shard(rankings: list[dict[str, Any]], folder: Path) -> None:
    """One row a prompt: its answers end to end, each behind the prompt's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = [[row["prompt_token_ids"] + answer for answer in row["answers"]] for row in rankings]
    table = pa.table(
        {
            "row_id": pa.array(range(len(rankings)), pa.int64()),
            "input_ids": pa.array([list(chain(*group)) for group in answers], pa.list_(pa.int32())),
            "lengths": pa.array([[len(answer) for answer in group] for group in answers], pa.list_(pa.int32())),
            "ranks": pa.array([row["ranks"] for row in rankings], pa.list_(pa.int32())),
        }
    )
    parquet.write_table(table, folder / "shard-00000.parquet")


@torch.no_grad()
def _scores(model_folder: Path, rankings: list[dict[str, Any]]) -> list[list[float]]:
    model = load_reward_model(model_folder).eval()
    padding = model.config.pad_token_id
    sequences = [torch.tensor(row["prompt_token_ids"] + answer) for row in rankings for answer in row["answers"]]
    scores: list[float] = []
    for begin in range(0, len(sequences), BATCH_ROWS):
        part = sequences[begin : begin + BATCH_ROWS]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=padding)
        scores += sequence_rewards(model, ids, torch.tensor([len(sequence) for sequence in part])).tolist()
    ends = np.cumsum([len(row["answers"]) for row in rankings])[:-1]
    return [group.tolist() for group in np.split(np.array(scores), ends)]


def _accuracy(rankings: list[dict[str, Any]], scores: list[list[float]]) -> dict[str, float]:
    """Share of pairs ordered rightly, of the pairs that the judge does not call a tie: the labeller without its noise
    where that is known, else the ranking itself."""
    right = pairs = 0
    for row, score in zip(rankings, scores, strict=True):
        quality = np.array(row["grades"] if row["grades"] is not None else [-rank for rank in row["ranks"]])
        better = quality[:, None] > quality[None, :]
        pairs += int(better.sum())
        right += int((better & (np.array(score)[:, None] > np.array(score)[None, :])).sum())
    if not pairs:
        raise UserError(
            "no two answers to a held-out prompt differ in rank: collect more prompts, or at a higher temperature"
        )
    return asdict(proportion(right, pairs))


def _write_normalisation(scores: list[list[float]], out: Path) -> None:
    """The scale of rewards: the fine-tuned model's own answers have mean 0 and deviation 1."""
    values = np.concatenate([np.array(group) for group in scores])
    write_json(out / NORMALISATION, {"mean": float(values.mean()), "deviation": float(max(values.std(), 1e-6))})


if __name__ == "__main__":
    stage_main("reward")
