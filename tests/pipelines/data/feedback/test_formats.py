"""Formats of preference files: what is read of each, and agreement that is that of the file."""

import gzip
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import kendalltau

from cluster.feedback import Feedback
from cluster.feedback.agreement import agreement
from pipelines.data.feedback.io import export_file, import_file
from tests.helpers import SHARED
from tests.pipelines.data.feedback.preference_files import PREFERENCES, REPLY, ROWS, read, write

# By the library krippendorff 0.9.0, level "ordinal", from the file's verdicts as mid-ranks: 3 people, 1,998 answers.
ALPHA = 0.8775943671114019
TREES = SHARED / "sft" / "openassistant-100-trees.jsonl"


def test_transcripts_become_messages_answers_and_ranks(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "hh-rlhf", write(tmp_path / "in.jsonl", ROWS["hh-rlhf"]), "trial", "them", 0.15)
    prompts = database.prompts()
    assert prompts[0].messages == [{"role": "user", "content": "a"}]
    assert [row.text for row in prompts[0].completions] == ["b", "c"]
    assert [turn["content"] for turn in prompts[2].messages] == ["a", "b", "c "]
    assert database.rankings()[0].ranks == {"1": 1, "2": 2}
    assert database.rankings()[0].annotator == "them"
    # Equal prompts are on the same side of the split.
    assert prompts[0].split == prompts[1].split


def test_scores_become_ranks_and_equal_scores_ties(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "ultrafeedback", write(tmp_path / "in.jsonl", ROWS["ultrafeedback"]), "trial", "gpt", 0.15)
    (ranking,), (prompt,) = database.rankings(), database.prompts()
    assert (ranking.annotator, list(ranking.ranks.values())) == ("gpt", [2, 1, 2])
    assert [row.model for row in prompt.completions] == ["a", "b", "c"]


def message(text: str, role: str, *replies: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "replies": list(replies), **rest}


def test_every_turn_of_a_tree_with_ranked_answers_is_a_prompt(database: Feedback, tmp_path: Path) -> None:
    deeper = message(
        "and then?", "prompter", message("d", "assistant", rank=1, lang="en"), message("e", "assistant", rank=0)
    )
    tree = message(
        "hi",
        "prompter",
        message("b", "assistant", deeper, rank=2),
        message("c", "assistant", rank=0, model_name="m"),
        message("gone", "assistant", rank=1, deleted=True),
        message("not ranked", "assistant", rank=None),
    )
    path = write(tmp_path / "in.jsonl", [{"message_tree_id": "t", "prompt": tree}])
    assert import_file(database, "openassistant", path, "trial", "crowd", 0.15).new == 2
    first, second = database.prompts()
    assert [turn["content"] for turn in first.messages] == ["hi"]
    assert second.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "and then?"},
    ]
    assert [(row.text, row.model) for row in first.completions] == [("b", "a person"), ("c", "m")]
    assert [list(row.ranks.values()) for row in database.rankings()] == [[2, 1], [2, 1]]
    assert export_file(database, "openassistant", tmp_path / "out.jsonl").rows == 1
    assert read(tmp_path / "out.jsonl") == read(path)
    assert export_file(database, "lists", tmp_path / "out.jsonl").rows == 2
    assert read(tmp_path / "out.jsonl")[1]["completions"] == ["d", "e"]


@pytest.mark.skipif(not TREES.exists(), reason="the shared trees are not here")
def test_real_trees_are_imported_by_turn_and_exported_whole(database: Feedback, tmp_path: Path) -> None:
    # Counted in the file: 211 turns whose answers are all ranked, and one turn with an answer that is not.
    assert import_file(database, "openassistant", TREES, "oasst", "crowd", 0.15).new == 212
    assert database.counts().rankings == 212
    assert all(prompt.messages[-1]["role"] == "user" for prompt in database.prompts())
    assert export_file(database, "openassistant", tmp_path / "out.jsonl").rows == 100
    assert read(tmp_path / "out.jsonl") == read(TREES)


@pytest.mark.parametrize("missing", ["N/A", None, float("nan"), "Infinity", True])
def test_an_answer_without_a_rating_is_kept_without_a_rank(missing: Any, database: Feedback, tmp_path: Path) -> None:
    scores = ["4.5", missing, 2]
    answers = [{"response": text, "fine-grained_score": score} for text, score in zip("abc", scores, strict=True)]
    row = {"instruction": "Say", "completions": answers}
    import_file(database, "ultrafeedback", write(tmp_path / "in.jsonl", [row]), "trial", "gpt", 0.15)
    export_file(database, "trl", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"prompt": "Say", "chosen": "a", "rejected": "c"}]


def test_a_prompt_of_text_may_stand_beside_messages(database: Feedback, tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": [REPLY], "rejected": [REPLY | {"content": "No"}]}
    import_file(database, "trl", write(tmp_path / "in.jsonl", [row]), "trial", "them", 0.15)
    export_file(database, "trl-messages", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [row]


@pytest.mark.skipif(not PREFERENCES.exists(), reason="the shared preference data is not here")
def test_pandalm_agreement_is_a_direct_count_from_the_file(database: Feedback, tmp_path: Path) -> None:
    path = PREFERENCES / "pandalm-3-annotators.json"
    rows = json.loads(path.read_text())
    assert import_file(database, "pandalm", path, "pandalm", "", 0.15).new == 999
    export_file(database, "pandalm", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == rows
    verdicts = [[row[f"annotator{number}"] for number in (1, 2, 3)] for row in rows]
    everyone, *people = agreement(database.rankings())
    assert (everyone.judged, everyone.shared, len(people)) == (2997, 999, 3)
    assert everyone.unanimous
    assert everyone.pairwise
    assert everyone.tau
    assert everyone.alpha
    assert everyone.unanimous.value == pytest.approx(879 / 999)
    same = Counter(one == other for three in verdicts for one, other in combinations(three, 2))
    assert everyone.pairwise.value == pytest.approx(same[True] / 2997)
    orders = ((1, 1), (1, 2), (2, 1))
    taus = [
        kendalltau(orders[one], orders[other]).statistic
        for three in verdicts
        for one, other in combinations(three, 2)
        if one and other
    ]
    assert everyone.tau.value == pytest.approx(sum(taus) / len(taus))
    assert everyone.alpha.value == pytest.approx(ALPHA, abs=1e-9)
    assert everyone.alpha.low < ALPHA < everyone.alpha.high


@pytest.mark.skipif(not PREFERENCES.exists(), reason="the shared preference data is not here")
def test_all_hh_transcripts_survive_a_round_trip(database: Feedback, tmp_path: Path) -> None:
    path = PREFERENCES / "hh-rlhf-harmless.jsonl.gz"
    assert import_file(database, "hh-rlhf", path, "hh", "hh-rlhf", 0.2).new == 2312
    assert export_file(database, "hh-rlhf", tmp_path / "out.jsonl").rows == 2312
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert read(tmp_path / "out.jsonl") == [json.loads(line) for line in file.read().split("\n") if line]
    sides: dict[str, set[str]] = {}
    for prompt in database.prompts():
        sides.setdefault(json.dumps(prompt.messages), set()).add(prompt.split)
    assert all(len(side) == 1 for side in sides.values())
    held_out = sum(prompt.split == "held_out" for prompt in database.prompts())
    assert 0.15 < held_out / 2312 < 0.25
