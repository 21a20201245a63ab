"""Rewards of a file of answers, compared to transformers' classifier on one answer at a time."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.errors import StageError, UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import Manifest, RunFolder
from pipelines.data.source_rows import read_rows
from pipelines.score import AnswersToScore, ScoreFailures, _output_rows, score_file
from tests.demo_recipe import DEMO
from tests.tiny import write_tiny_reward_model

MEAN, DEVIATION, CONTEXT = 0.3, 1.7, 64
QUESTION = {"role": "user", "content": "What is the capital of Peru?"}
ROWS: list[dict[str, Any]] = [
    {"prompt": QUESTION["content"], "completions": ["Lima.", "She sells sea shells.", "Lima. " * 60], "id": 7},
    {"messages": [{"role": "system", "content": "Be short."}, QUESTION], "completions": ["", "Lima", "Lima", "shells"]},
    {"messages": [QUESTION, {"role": "assistant", "content": "See a doctor."}]},
]


def recipe(tmp_path: Path) -> Recipe:
    corpus = {"sources": [{"kind": "files", "path": str(tmp_path / "text.txt")}]}
    shape = {"model": {"context": CONTEXT}, "cluster": {"cpus": 2, "gpus": 0}}
    return Recipe.model_validate({"name": "t", "corpus": corpus, **DEMO, **shape})


@pytest.mark.slow
def test_rewards_are_those_of_the_classifier(tmp_path: Path, ray_session: None) -> None:
    run, source = RunFolder(tmp_path), tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(UserError, match="triptych reward"):
        score_file(recipe(tmp_path), run, source, tmp_path / "out.jsonl", "rewards", None, 1)
    write_tiny_reward_model(tmp_path / "reward", MEAN, DEVIATION)
    write_json(tmp_path / "reward" / "manifest.json", asdict(Manifest("reward", "", {}, {}, "", 0.0)))
    found = score_file(recipe(tmp_path), run, source, tmp_path / "out.jsonl", "rewards", None, 1)
    written = [row for row, _ in read_rows(str(tmp_path / "out.jsonl"))]
    assert [{key: row[key] for key in row if key != "rewards"} for row in written] == ROWS

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    talks = [
        ([QUESTION], ROWS[0]["completions"][:2]),
        (ROWS[1]["messages"], ROWS[1]["completions"]),
        ([QUESTION], ["See a doctor."]),
    ]
    expected = []
    for messages, texts in talks:
        whole = [[*messages, {"role": "assistant", "content": text}] for text in texts]
        ids = [tokenizer.apply_chat_template(talk, return_dict=False) for talk in whole]
        with torch.no_grad():
            expected.append([(float(model(torch.tensor([row])).logits) - MEAN) / DEVIATION for row in ids])
    assert written[0]["rewards"].pop() is None
    for row, right in zip(written, expected, strict=True):
        assert row["rewards"] == pytest.approx(right, abs=1e-4)
    flat = [reward for group in expected for reward in group]
    assert (found.prompts, found.answers, found.too_long, found.written) == (3, 7, 1, 3)
    assert found.mean == pytest.approx(sum(flat) / 7, abs=1e-4)
    assert found.best == pytest.approx(sum(map(max, expected)) / 3, abs=1e-4)


def test_answers_without_a_finite_score_are_left_out_up_to_a_share() -> None:
    failures = ScoreFailures(10, 0.1)
    assert failures.left_out([0.5, "the reward model gave nan, for prompt 'in.jsonl line 1'", None]) == [
        0.5,
        None,
        None,
    ]
    with pytest.raises(StageError, match=r"prompt 'in.jsonl line 2'; 2 of 10 answers .* --max-failed allows 10%"):
        failures.left_out(["the reward model gave inf, for prompt 'in.jsonl line 2'"])
    assert len(failures.reasons) == 2


def test_best_has_a_threshold_and_pairs_need_a_difference() -> None:
    row = AnswersToScore([QUESTION], ["a", "b", "c", "d"], {})

    def outputs(rewards: list[float | None], kind: Any, at_least: float | None = None) -> list[Any]:
        return list(_output_rows(row, rewards, kind, at_least))

    answers = {text: [{"role": "assistant", "content": text}] for text in row.texts}
    assert outputs([0.1, 0.5, None, 0.5], "best") == [{"messages": [QUESTION, *answers["b"]], "reward": 0.5}]
    assert outputs([0.1, 0.5, None, 0.5], "best", 0.6) == []
    assert outputs([None] * 4, "best") == []
    assert outputs([0.25, 0.5, None, 0.0], "pairs") == [
        {"prompt": [QUESTION], "chosen": answers["b"], "rejected": answers["d"], "margin": 0.5}
    ]
    assert outputs([0.5, 0.5, None, 0.5], "pairs") == []
    assert outputs([0.5, None, None, None], "pairs") == []


@pytest.mark.parametrize(
    "row", [{"prompt": "a"}, {"prompt": "a", "completions": []}, {"prompt": "a", "completions": [1]}]
)
def test_an_error_names_a_row_without_answers(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    write_json(tmp_path / "reward" / "manifest.json", asdict(Manifest("reward", "", {}, {}, "", 0.0)))
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "a", **row}))
    with pytest.raises(UserError, match=r"in\.jsonl line 1: completions must be a list of texts"):
        score_file(recipe(tmp_path), RunFolder(tmp_path), source, tmp_path / "out.jsonl", "rewards", None, 1)
