"""The reward model: trained on rankings to predict which answers people prefer."""

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from rich.progress import track
from transformers import AutoTokenizer

from actors.algorithms.normalization import are_equal
from actors.model.chat import Chat
from actors.model.reward_head import MEMBER_PREFIX, with_new_head
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.rewards.scorer import ScoreFunction, Scorer, remote_scorer
from actors.types import reward_scale_file
from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import RewardModel
from cluster.run.atomic import write_json
from cluster.run.folder import SCRATCH, RunFolder, fingerprint
from cluster.run.stages import Result
from cluster.run.weight_files import weights_fingerprint
from cluster.runtime.plan import Plan, make_plan
from pipelines.collect_answers import round_mark
from pipelines.data.preferences.ask_order import RewardModels, order_prompts
from pipelines.data.preferences.rankings import (
    judgement_weight,
    read_rankings,
    read_unpaired,
    require_judgements,
    sign_of,
)
from pipelines.evaluate.reward_probes import Row, Score, with_counterexamples
from pipelines.evaluate.reward_trust import pair_accuracy, reward_model_report
from pipelines.train import fit, training_job


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Trains on the rankings of the collect stage, and measures the accuracy on pairs of held-out prompts.

    Raises:
        UserError: no ranking to train on, or none that is held out, says of two answers which is better.
    """
    sft, plan, path = run.path("sft"), make_plan(recipe), run.path("preferences") / "rankings.parquet"
    for split in ("train", "held_out"):
        require_judgements(path, split, recipe.reward)
    parts = {split: read_rankings(path, split) for split in ("train", "held_out")}
    unpaired, unmeasured = read_unpaired(path, "train"), read_unpaired(path, "held_out")
    trained = {
        "rankings": sum(judgement_weight(row, recipe.reward) > 0 for row in parts["train"]),
        "unpaired": sum(judgement_weight(row, recipe.reward) > 0 for row in unpaired),
    }
    _write_shard(parts["held_out"], recipe.reward, out / "shards" / "held_out")
    train = partial(_train, recipe, plan, sft, out / "shards" / "held_out")
    scorer = partial(reward_scorer, recipe, plan)
    curve = [_point(share, recipe.seed, parts, train, scorer, out / "curve") for share in sorted(recipe.reward.curve)]
    members = [
        train(parts["train"], out, unpaired),
        *(
            train(_resample(parts["train"], recipe.seed, number), out / f"{MEMBER_PREFIX}{number}", unpaired)
            for number in range(2, recipe.reward.members + 1)
        ),
    ]
    with scorer() as scores_by:
        score = partial(scores_by, members)
        scores = {name: scores_of_answers(score, rows) for name, rows in parts.items()}
        found = reward_model_report(parts["held_out"], scores["held_out"], score, Chat.of(out), recipe.model.context)
        accuracies = _accuracies(scores_by, members, parts["held_out"]) if len(members) > 1 else []
        sentence = _order_prompts(recipe, run, out, scores_by)
    _write_normalization(scores["train"], parts["train"], out)
    for folder in out.glob(f"{MEMBER_PREFIX}*/{SCRATCH}"):
        shutil.rmtree(folder)
    return Result(
        metrics={
            **trained,
            **_counterexamples(out / "shards" / "train", recipe.reward),
            "left_out_by_weight": len(parts["train"]) + len(unpaired) - sum(trained.values()),
            # Held-out judgements without a pair, which are neither trained on nor measured: accuracy counts pairs.
            "unpaired_held_out": len(unmeasured),
            "by_source": _by_source(parts["held_out"], scores["held_out"]),
            "pair_accuracy": found["accuracy"],
            **({"order": sentence} if sentence else {}),
            "train_pair_accuracy": pair_accuracy(parts["train"], scores["train"]),
            "trust": found,
            **({"curve": curve} if curve else {}),
            **({"member_accuracies": accuracies} if accuracies else {}),
        },
        weights=_weights(out),
    )


def _order_prompts(recipe: Recipe, run: RunFolder, out: Path, scores_by: ScoreFunction) -> str:
    """Has people asked next what this reward model knows least about, and returns a sentence on that; empty where the
    recipe does not ask for it."""
    if recipe.collect.select is None:
        return ""
    models = RewardModels(out, _weights(out), None)
    mark = round_mark(recipe, run.require("sft").weights or "")
    with open_feedback(run.feedback_url) as database:
        return order_prompts(recipe, database, Chat.of(run.path("sft")), mark, models, lambda: nullcontext(scores_by))


def _train(
    recipe: Recipe,
    plan: Plan,
    sft: Path,
    held_out: Path,
    rankings: list[dict[str, Any]],
    out: Path,
    unpaired: Sequence[dict[str, Any]] = (),
) -> Path:
    """Trains a reward model on rankings and unpaired answers, writes it to `out`, and returns `out`."""
    rows: Sequence[Row] = rankings
    if kinds := recipe.reward.counterexamples:
        rows = with_counterexamples(rankings, kinds, Chat.of(sft), recipe.model.context, recipe.seed)
    _write_shard([*rows, *unpaired], recipe.reward, out / "shards" / "train")
    job = training_job(recipe, recipe.reward, partial(_model, sft), out / "shards" / "train", held_out, out)
    fit(job, plan, "reward model")
    return out


def _counterexamples(shards: Path, settings: RewardModel) -> dict[str, int]:
    """Counts the counterexamples that were trained on, and those that did not apply to an answer, did not fit, or were
    the same as another answer; nothing where the recipe names none.
    """
    if not settings.counterexamples:
        return {}
    rows = parquet.read_table(shards, columns=["made_from", "good"]).to_pylist()
    made = sum(place >= 0 for row in rows for place in row["made_from"])
    asked = len(settings.counterexamples) * sum(row["good"] == 0 for row in rows)
    return {"counterexamples": made, "counterexamples_left_out": asked - made}


def _by_source(rows: Sequence[dict[str, Any]], scores: Sequence[list[float]]) -> dict[str, Any]:
    """Computes the held-out accuracy on the pairs of each source that orders any."""
    parts: dict[str, list[tuple[dict[str, Any], list[float]]]] = defaultdict(list)
    for row, own in zip(rows, scores, strict=True):
        if len(set(row["ranks"])) > 1:
            parts[row.get("source") or "rankings"].append((row, own))
    return {name: pair_accuracy(*zip(*parts[name], strict=True)) for name in sorted(parts)}


def _accuracies(scores_by: ScoreFunction, members: Sequence[Path], held_out: list[dict[str, Any]]) -> list[float]:
    """Computes the held-out accuracy of each member alone, to compare the ensemble with."""
    return [pair_accuracy(held_out, scores_of_answers(partial(scores_by, [one]), held_out))["value"] for one in members]


@contextmanager
def reward_scorer(recipe: Recipe, plan: Plan) -> Iterator[ScoreFunction]:
    """Yields scores by the device that trains the reward model: a GPU in an actor, or the CPUs here.

    Nothing is trained meanwhile: there may be one GPU.
    """
    share, precision = plan.trainer, recipe.reward.precision
    if share.gpus:
        with remote_scorer(share, precision, recipe.cluster.deadline_seconds) as scores:
            yield scores
    else:
        bar = partial(track, description="scoring", transient=True)
        yield Scorer(precision, plan.learner.threads, bar).scores


def _weights(out: Path) -> str:
    """Returns the checksum of the model, or of all members of an ensemble."""
    own = weights_fingerprint(out)
    others = [weights_fingerprint(folder) for folder in sorted(out.glob(f"{MEMBER_PREFIX}*"))]
    return fingerprint([own, *others]) if others else own


def _resample(rankings: list[dict[str, Any]], seed: int, number: int) -> list[dict[str, Any]]:
    """Draws as many prompts with replacement, each with all its rankings (bagging, Breiman 1996).

    Members that were trained on the same rankings would err alike.
    """
    prompts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rankings:
        prompts[row["prompt_id"]].append(row)
    drawn = random.Random(f"member {seed} {number}").choices(sorted(prompts), k=len(prompts))
    return [row for name in drawn for row in prompts[name]]


def _point(
    share: float,
    seed: int,
    parts: Mapping[str, list[dict[str, Any]]],
    train: Callable[[list[dict[str, Any]], Path], Path],
    scorer: Callable[[], AbstractContextManager[ScoreFunction]],
    folder: Path,
) -> dict[str, Any]:
    """Computes the accuracy of a model that is trained on a share of the prompts: a point of the learning curve.

    A larger share holds all prompts of a smaller one. The accuracy is kept and the model is not, so that a resumed
    stage does not train it again.
    """
    found = folder / f"{share:g}.json"
    if not found.exists():
        prompts = sorted({row["prompt_id"] for row in parts["train"]})
        random.Random(f"curve {seed}").shuffle(prompts)
        chosen = set(prompts[: max(1, round(share * len(prompts)))])
        rankings = [row for row in parts["train"] if row["prompt_id"] in chosen]
        out = folder / f"{share:g}"
        trained = train(rankings, out)
        with scorer() as scores_by:
            scores = scores_of_answers(partial(scores_by, [trained]), parts["held_out"])
        right = pair_accuracy(parts["held_out"], scores)
        write_json(found, {"prompts": len(chosen), "rankings": len(rankings), "pair_accuracy": right})
        shutil.rmtree(out)
    point: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return point


def _model(sft: Path) -> tuple[Any, Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(sft)
    return with_new_head(sft), BradleyTerryObjective(tokenizer.pad_token_id), tokenizer


def _write_shard(rows: Sequence[Row], settings: RewardModel, folder: Path) -> None:
    """Writes one row a judgement: its answers end to end, each behind the prompt, and its weight, which is its
    annotator's times its source's. Of an unpaired answer, `good` is 1 or -1; of a ranking, 0.

    The mean weight is 1, so that weights do not change the learning rate.

    Raises:
        UserError: all rows have sources of weight 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weighted = [(row, judgement_weight(row, settings)) for row in rows]
    rankings = [row for row, weight in weighted if weight > 0]
    weights = np.array([weight for _, weight in weighted if weight > 0])
    if not rankings:
        raise UserError("reward.source_weights leaves no judgement: give a source that has some a weight above 0")
    answers = [[row["prompt_token_ids"] + answer for answer in row["answers"]] for row in rankings]
    table = pa.table(
        {
            "row_id": pa.array(range(len(rankings)), pa.int64()),
            "input_ids": pa.array([list(chain(*group)) for group in answers], pa.list_(pa.int32())),
            "lengths": pa.array([[len(answer) for answer in group] for group in answers], pa.list_(pa.int32())),
            "ranks": pa.array([row["ranks"] for row in rankings], pa.list_(pa.int32())),
            "made_from": pa.array(
                [row.get("made_from", [-1] * len(row["answers"])) for row in rankings], pa.list_(pa.int32())
            ),
            "weight": pa.array(weights / weights.mean(), pa.float32()),
            "good": pa.array([sign_of(row) for row in rankings], pa.int8()),
        }
    )
    parquet.write_table(table, folder / "shard-00000.parquet")


def scores_of_answers(score: Score, rankings: Sequence[Row]) -> list[list[float]]:
    """Scores every answer of N rows of rankings.parquet; returns [N][K]."""
    flat = iter(score([row["prompt_token_ids"] + answer for row in rankings for answer in row["answers"]]))
    return [[next(flat) for _ in row["answers"]] for row in rankings]


def _write_normalization(scores: list[list[float]], rankings: list[dict[str, Any]], out: Path) -> None:
    """Writes the scale on which the fine-tuned model's own answers, each weighted by how often it was sampled, have
    mean 0 and deviation 1.

    Scores that are equal up to rounding are not scaled, so that rounding does not become a reward.
    """
    samples = np.concatenate([np.array(row["samples"]) for row in rankings])
    values = np.repeat(np.concatenate([np.array(group, dtype=np.float64) for group in scores]), samples)
    deviation = 1.0 if are_equal(values.tolist()) else float(values.std())
    write_json(reward_scale_file(out), {"mean": float(values.mean()), "deviation": deviation})
