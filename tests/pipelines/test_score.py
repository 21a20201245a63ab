"""A file of answers and its rewards, against transformers' own pooling one answer at a time."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import Manifest, RunFolder
from pipelines.data.chat_formats import read_rows
from pipelines.score import AnswersToScore, _output_rows, score_file
from tests.tiny import write_tiny_reward_model
from tests.world import DEMO

MEAN, DEVIATION, CONTEXT = 0.3, 1.7, 64
ASKED = {"role": "user", "content": "What is the capital of Peru?"}
GIVEN: list[dict[str, Any]] = [
    {"prompt": ASKED["content"], "completions": ["Lima.", "She sells sea shells.", "Lima. " * 60], "id": 7},
    {"messages": [{"role": "system", "content": "Be short."}, ASKED], "completions": ["", "Lima", "Lima", "shells"]},
    {"messages": [ASKED, {"role": "assistant", "content": "See a doctor."}]},
]


def recipe(tmp_path: Path) -> Recipe:
    corpus = {"sources": [{"kind": "files", "path": str(tmp_path / "text.txt")}]}
    shape = {"model": {"context": CONTEXT}, "cluster": {"cpus": 2, "gpus": 0}}
    return Recipe.model_validate({"name": "t", "corpus": corpus, **DEMO, **shape})


@pytest.mark.slow
def test_rewards_are_those_of_the_classifier_and_the_best_and_the_worst_are_chosen_by_them(
    tmp_path: Path, ray_session: None
) -> None:
    run, source = RunFolder(tmp_path), tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in GIVEN))
    with pytest.raises(UserError, match="triptych reward"):
        score_file(recipe(tmp_path), run, source, tmp_path / "out.jsonl", "rewards", None, 1)
    write_tiny_reward_model(tmp_path / "reward", MEAN, DEVIATION)
    write_json(tmp_path / "reward" / "manifest.json", asdict(Manifest("reward", "", {}, {}, "", 0.0)))
    found = score_file(recipe(tmp_path), run, source, tmp_path / "out.jsonl", "rewards", None, 1)
    written = [row for row, _ in read_rows(str(tmp_path / "out.jsonl"))]
    assert [{key: row[key] for key in row if key != "rewards"} for row in written] == GIVEN

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    talks = [
        ([ASKED], GIVEN[0]["completions"][:2]),
        (GIVEN[1]["messages"], GIVEN[1]["completions"]),
        ([ASKED], ["See a doctor."]),
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


def test_the_best_answer_is_kept_if_it_is_good_enough_and_a_pair_needs_a_difference() -> None:
    asked = AnswersToScore([ASKED], ["a", "b", "c", "d"], {})

    def made(rewards: list[float | None], kind: Any, at_least: float | None = None) -> list[Any]:
        return list(_output_rows(asked, rewards, kind, at_least))

    answers = {text: [{"role": "assistant", "content": text}] for text in asked.texts}
    assert made([0.1, 0.5, None, 0.5], "best") == [{"messages": [ASKED, *answers["b"]], "reward": 0.5}]
    assert made([0.1, 0.5, None, 0.5], "best", 0.6) == []
    assert made([None] * 4, "best") == []
    assert made([0.25, 0.5, None, 0.0], "pairs") == [
        {"prompt": [ASKED], "chosen": answers["b"], "rejected": answers["d"], "margin": 0.5}
    ]
    assert made([0.5, 0.5, None, 0.5], "pairs") == []
    assert made([0.5, None, None, None], "pairs") == []


@pytest.mark.parametrize(
    "row", [{"prompt": "a"}, {"prompt": "a", "completions": []}, {"prompt": "a", "completions": [1]}]
)
def test_a_row_without_answers_is_named(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    write_json(tmp_path / "reward" / "manifest.json", asdict(Manifest("reward", "", {}, {}, "", 0.0)))
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "a", **row}))
    with pytest.raises(UserError, match=r"in\.jsonl line 1: completions should be a list of texts"):
        score_file(recipe(tmp_path), RunFolder(tmp_path), source, tmp_path / "out.jsonl", "rewards", None, 1)
