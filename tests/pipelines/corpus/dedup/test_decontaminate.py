"""Evaluation text is found where it was planted, with its place, and nowhere else."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.run.folder import file_fingerprint
from pipelines.corpus.dedup.decontaminate import DecontaminatePhase, Match, NGrams, read_items
from tests.helpers import SHARED

TRUTHFULQA = SHARED / "eval" / "truthfulqa-en.json"


def test_a_run_of_n_words_is_found_whatever_its_case_and_punctuation() -> None:
    ngrams = NGrams(iter([("a", ["one two three four"]), ("b", ["Two three four, five"]), ("c", ["two"])]), n=3)
    assert (ngrams.items, ngrams.too_short) == (3, 1)
    text = "Well: ONE, two -- three! And two three four five."
    assert ngrams.find(text) == [
        Match("a", text.index("ONE"), text.index("!")),
        Match("a", text.index("two three four"), text.index(" five")),
        Match("b", text.index("two three four"), text.index(".")),
    ]


@pytest.mark.parametrize("text", ["", "one two", "one two x three four", "four three two one"])
def test_a_shorter_run_is_not_found(text: str) -> None:
    assert NGrams(iter([("a", ["one two three four"])]), n=3).find(text) == []


def test_runs_do_not_reach_over_the_texts_of_an_item() -> None:
    assert NGrams(iter([("a", ["one two", "three four"])]), n=3).find("one two three four") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", '[{"id": "x", "question": "Q", "answers": ["A", "B"]}, {"question": "R", "answers": []}]'),
        ("t.json", '{"version": 2, "data": [{"id": "x", "q": "Q", "a": {"0": "A", "1": "B"}}, "R"]}'),
        ("t.jsonl", '{"id": "x", "q": "Q", "choices": ["A", "B"]}\n\n{"q": "R"}\n'),
        ("t.csv", "id,question,one,two\nx,Q,A,B\n1,R,,\n"),
    ],
)
def test_items_are_read_from_json_jsonl_and_csv(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    items = [(item, [text for text in texts if text in "QABR" and text]) for item, texts in read_items(tmp_path / name)]
    assert items == [(f"{name}:x", ["Q", "A", "B"]), (f"{name}:1", ["R"])]


def test_a_broken_evaluation_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("[")
    with pytest.raises(UserError, match=r"cannot read .*t\.json"):
        list(read_items(tmp_path / "t.json"))
    with pytest.raises(UserError, match=r"only \.json, \.jsonl, \.csv, \.tsv and \.parquet"):
        list(read_items(tmp_path / "t.txt"))


@pytest.mark.skipif(not TRUTHFULQA.exists(), reason="the shared evaluation file is not here")
@pytest.mark.parametrize("drop", [True, False])
def test_planted_questions_are_found_in_documents(tmp_path: Path, drop: bool) -> None:
    questions = json.loads(TRUTHFULQA.read_text(encoding="utf-8"))
    asked = {question["id"]: question["question"] for question in questions if len(question["question"].split()) >= 20}
    (first, one), (second, other) = list(asked.items())[:2]
    texts = [
        "A tale of a king who had three daughters and no sons at all, and was content.",
        f"My notes. {one.upper()} I do not know.",
        f"{' '.join(other.split()[:12])} and then something else entirely",
        f"{one} Or else: {other}",
    ]
    rows = {"id": list("abcd"), "source": ["s"] * 4, "text": texts}
    pq.write_table(pa.table(rows), tmp_path / "part-00000.parquet")
    phase = DecontaminatePhase(
        parts=(tmp_path / "part-00000.parquet",),
        files=(TRUTHFULQA,),
        fingerprints=(file_fingerprint(TRUTHFULQA),),
        n=13,
        drop=drop,
        rows=tmp_path / "rows",
        found=tmp_path / "found",
    )
    report = phase(0)
    assert report["documents"] == 2
    assert report["looked_for"] == len(questions) == 817
    name = f"{TRUTHFULQA.name}:"
    assert report["items"][f"{name}{first}"] == 2
    assert report["items"][f"{name}{second}"] == 1
    assert np.load(phase.rows_file(0)).tolist() == ([1, 3] if drop else [])
    passages = pq.read_table(tmp_path / "found").to_pylist()
    assert {row["id"] for row in passages} == {"b", "d"}
    spans = {(row["id"], row["item"]): row["span"] for row in passages}
    assert spans["b", f"{name}{first}"] == one.upper().rstrip('?"')
    assert spans["d", f"{name}{second}"] == other.rstrip("?")
