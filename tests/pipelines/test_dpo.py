"""The DPO stage, on rankings whose better answer is decided by its first token."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch

from actors.model.causal_lm import load
from actors.model.completion_logprobs import completion_logprobs, pad_completions
from cluster.errors import UserError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import Manifest, RunFolder
from cluster.run.layout import stage_of
from cluster.run.metrics import read_metrics
from pipelines.data.preferences.preference_rows import answers_of, pairs_of, with_mismatched
from pipelines.data.preferences.rankings import write_rankings
from pipelines.stage_table import run_named_stage
from tests.tiny import write_tiny_model

BETTER, MIDDLE, WORSE, END = 50, 60, 70, 4


def ranking(number: int, split: str, answers: list[list[int]], ranks: list[int]) -> dict[str, Any]:
    chance = random.Random(number)
    return {
        "prompt_id": f"p{number}",
        "kind": None,
        "prompt_token_ids": [2, *(chance.randrange(20, 300) for _ in range(4)), 3],
        "answers": answers,
        "texts": [" ".join(map(str, answer)) for answer in answers],
        "ranks": ranks,
        "grades": None,
        "annotator": "ann",
        "split": split,
        "ranking_id": number,
    }


def rankings(train: int, held_out: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(train + held_out):
        extra = random.Random(-1 - number).randrange(20, 300)
        answers = [[token, extra, END] for token in (WORSE, BETTER, MIDDLE)]
        rows.append(ranking(number, "train" if number < train else "held_out", answers, [3, 1, 2]))
    return rows


def finished(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> tuple[Recipe, RunFolder]:
    """Makes a run whose stages sft and collect are done."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "chats.jsonl").write_text('{"question": "hi", "answer": "hello"}\n' * 8)
    sources = f"{{sources: [{{kind: files, path: {tmp_path / 'chats.jsonl'}}}]}}"
    dpo = {"epochs": 3, "batch_rows": 8, "micro_batch_rows": 4, "learning_rate": 1e-3, "precision": "float32", **more}
    (tmp_path / "recipe.yaml").write_text(
        f"name: own\nrun: {tmp_path / 'run'}\nmodel: {{start_from: {tmp_path}, context: 64}}\n"
        f"sft: {sources}\ncollect: {sources}\ndpo: {dpo}\n".replace("'", "")
    )
    run = RunFolder(tmp_path / "run")
    for folder in ("sft", "preferences"):
        out = run.begin(folder, folder)
        if folder == "sft":
            write_tiny_model(out, seed=1, end_id=END)
            # As with most models, only the tokenizer knows the padding token.
            config = json.loads((out / "config.json").read_text())
            (out / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
        else:
            write_rankings(rows, out / "rankings.parquet")
        run.commit(folder, Manifest(folder, folder, {}, {}, "test", 0.0, {}, None))
    return load_recipe(tmp_path / "recipe.yaml"), run


def logprobs(model: Path, rows: list[dict[str, Any]], answer: int) -> torch.Tensor:
    sequences = [row["prompt_token_ids"] + row["answers"][answer] for row in rows]
    ids, mask = pad_completions(sequences, [len(row["prompt_token_ids"]) for row in rows], 0)
    with torch.no_grad():
        return completion_logprobs(load(model).double().eval(), ids, mask, torch.arange(len(ids))).sum(1)


@pytest.mark.slow
def test_dpo_learns_the_preferred_answers_and_reports_the_margin(tmp_path: Path, ray_session: None) -> None:
    rows = rankings(train=40, held_out=10)
    recipe, run = finished(tmp_path, rows)
    assert run_named_stage(stage_of("dpo"), recipe, run) == "done"
    manifest = run.require("dpo")
    found = manifest.metrics
    assert (found["pairs"], found["pair_accuracy"]["n"]) == (3 * 40, 3 * 10)
    assert found["pair_accuracy"]["value"] == 1.0
    # Before the first step the policy is the reference, which the training worker computes in the same way.
    first = read_metrics(run.path("dpo"))[0]
    assert (first["margins"], first["loss"]) == (0.0, pytest.approx(math.log(2), abs=1e-7))
    assert "ref_logprobs" not in parquet.read_schema(run.path("dpo") / "shards" / "train" / "shard-00000.parquet").names

    # The margin by its definition (Rafailov et al. 2023, equation 7), in float64 from the two models on disk.
    held_out = rows[40:]
    gain = [
        logprobs(run.path("dpo"), held_out, answer) - logprobs(run.path("sft"), held_out, answer) for answer in range(3)
    ]
    margins = recipe.dpo.beta * torch.stack([gain[1] - gain[0], gain[1] - gain[2], gain[2] - gain[0]])
    assert found["held_out_margin"] == pytest.approx(margins.mean().item(), rel=1e-3)
    assert found["held_out_loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-3)
    assert run_named_stage(stage_of("dpo"), recipe, run) == "skipped"


def test_pairs_are_all_answers_that_are_not_tied() -> None:
    row = ranking(1, "train", [[10], [11], [12], [13]], [2, 1, 2, 3])
    assert {(*better, *worse) for better, worse in (pair.answers for pair in pairs_of(row))} == {
        (11, 10),
        (11, 12),
        (11, 13),
        (10, 13),
        (12, 13),
    }


def thumb(number: int, token: int, good: bool, split: str) -> dict[str, Any]:
    row = ranking(number, split, [[token, END]], [1])
    return {**row, "annotator": "visitor", "source": "thumbs", "good": good, "share": 1.0}


def test_kto_learns_an_answer_by_the_pairs_that_it_wins_and_loses() -> None:
    row = ranking(1, "train", [[10], [11], [12], [13]], [2, 1, 2, 3])
    found = {one.answers[0][0]: (one.good, one.weight) for one in answers_of(row, 3.0)}
    # 10 and 12 win one pair, lose one and tie one.
    assert found == {11: (1, 3.0), 13: (-1, 3.0)}
    four = ranking(1, "train", [[10], [11], [12], [13]], [1, 2, 3, 4])
    assert {one.answers[0][0]: (one.good, round(3 * one.weight)) for one in answers_of(four)} == {
        10: (1, 3),
        11: (1, 1),
        12: (-1, 1),
        13: (-1, 3),
    }
    assert [(one.good, one.weight) for one in answers_of(thumb(1, 50, False, "train"), 0.5)] == [(-1, 0.5)]
    prompts = [thumb(number // 2, number, True, "train") for number in range(20)]
    paired = with_mismatched([one for row in prompts for one in answers_of(row)], context=7, seed=1)
    own = {row["answers"][0][0]: row["prompt_token_ids"] for row in prompts}
    for one in paired:
        assert own[one.answers[0][0]] == one.prompt != own[one.answers[1][0]]
        assert len(one.prompt + one.answers[1]) == 7


@pytest.mark.slow
def test_kto_with_adapters_learns_from_rankings_and_thumbs(tmp_path: Path, ray_session: None) -> None:
    liked, disliked = 80, 90
    rows = rankings(train=20, held_out=6)
    thumbs = [
        thumb(100 + number, token, token == liked, "train" if number < 20 else "held_out")
        for number in range(26)
        for token in (liked, disliked)
    ]
    settings = {"loss": "kto", "beta": 0.5, "lora": {"rank": 8}, "source_weights": {"thumbs": 2.0}, "epochs": 4}
    recipe, run = finished(tmp_path, [*rows, *thumbs], **{**settings, "learning_rate": 1e-2})
    assert run_named_stage(stage_of("dpo"), recipe, run) == "done"
    found = run.require("dpo").metrics
    # The middle answer of each ranking wins one pair and loses one.
    assert (found["answers"], found["answer_accuracy"]["n"], found["left_out_by_weight"]) == (80, 24, 0)
    assert found["answer_accuracy"]["value"] > 0.9
    assert found["reference_point"] >= 0
    weights = parquet.read_table(run.path("dpo") / "shards" / "train" / "shard-00000.parquet")["weight"].to_pylist()
    assert sum(weights) / len(weights) == pytest.approx(1, abs=1e-6)
    assert max(weights) / min(weights) == pytest.approx(2, abs=1e-6)
    # The lesson of the thumbs alone holds on prompts that were not trained on.
    new = [thumb(300 + number, token, True, "x") for number in range(10) for token in (liked, disliked)]
    gain = (logprobs(run.path("dpo"), new, 0) - logprobs(run.path("sft"), new, 0)).view(-1, 2)
    assert float((gain[:, 0] - gain[:, 1]).mean()) > 0.5
    assert (run.path("dpo") / "adapter" / "adapter_model.safetensors").exists()


def test_settings_of_another_loss_are_refused(tmp_path: Path) -> None:
    for more, told in (
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing is for loss dpo, and loss is ipo"),
        ({"desirable_weight": 2.0}, "desirable_weight and undesirable_weight are for loss kto, and loss is dpo"),
    ):
        with pytest.raises(UserError, match=told):
            finished(tmp_path / str(more["loss" if "loss" in more else "desirable_weight"]), [], **more)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_rankings_of_ties_alone_are_refused(tmp_path: Path, split: str) -> None:
    rows = rankings(train=4, held_out=4)
    for row in rows:
        if row["split"] == split:
            row["ranks"] = [1, 1, 1]
    recipe, run = finished(tmp_path, rows)
    with pytest.raises(
        UserError, match=rf"^4 judgements of the {split} prompts read, 0 left.*tied 4; 4 of the other split"
    ):
        run_named_stage(stage_of("dpo"), recipe, run)
    assert run.manifest("dpo") is None
