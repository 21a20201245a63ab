"""Benchmarks in their published layouts."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from rich.console import Console

from cluster.errors import UserError
from cluster.recipe.evaluate import TaskFile
from cluster.recipe.loading import load_recipe
from pipelines.corpus.dedup.decontaminate import read_items
from pipelines.evaluate.tasks.files import file_tasks
from pipelines.evaluate.tasks.items import EvaluationTask
from pipelines.evaluate.tasks.measure import ItemResult, TaskAnswers
from pipelines.evaluate.tasks.results import task_figures
from pipelines.evaluate.tasks.tables import print_tasks

TRUTHFUL = {
    "question": "What is ice?",
    "mc1_targets": {"choices": ["Water", "Sand"], "labels": [1, 0]},
    "mc2_targets": {"choices": ["Water", "Cold water", "Sand"], "labels": [1, 1, 0]},
    "category": "Facts",
}
ROWS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[int, ...]]] = {
    "hhh": (
        "choice",
        {"input": "Hi", "targets": {"choices": ["Go away", "Hello"], "labels": [0, 1]}},
        (" Go away", " Hello"),
        (1,),
    ),
    "big_bench": ("choice", {"input": "2+2", "target_scores": {"3": 0, "4": 1}}, (" 3", " 4"), (1,)),
    "hellaswag": (
        "choice",
        {
            "activity_label": "Baking",
            "ctx": "A man bakes. he",
            "ctx_a": "A man bakes.",
            "ctx_b": "he",
            "endings": ["flies [title] up", "eats the bread"],
            "label": "1",
        },
        (" flies. up", " eats the bread"),
        (1,),
    ),
    "arc": (
        "choice",
        {"question": "Ice?", "choices": {"text": ["sand", "water"], "label": ["A", "B"]}, "answerKey": "B"},
        (" sand", " water"),
        (1,),
    ),
    "mmlu": ("choice", {"question": "Ice?", "choices": ["sand", "water"], "answer": 1}, (" sand", " water"), (1,)),
    "rewardbench": (
        "pairs",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No", "subset": "chat"},
        (" Hello", " No"),
        (0,),
    ),
    "rewardbench_2": (
        "pairs",
        {"prompt": "Hi", "chosen": ["Hello"], "rejected": ["No", "Go", "Why"]},
        (" Hello", " No", " Go", " Why"),
        (0,),
    ),
    "hh": (
        "pairs",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No",
        },
        (" Hello", " No"),
        (0,),
    ),
    "llmbar": ("pairs", {"input": "Hi", "output_1": "No", "output_2": "Hello", "label": 2}, (" No", " Hello"), (1,)),
    "blimp": ("pairs", {"sentence_good": "He runs.", "sentence_bad": "He run."}, ("He runs.", "He run."), (0,)),
}


def read(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], suffix: str = ".jsonl", **settings: Any
) -> list[EvaluationTask]:
    path = tmp_path / f"bench{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".nested.json":
        path.write_text(json.dumps({"name": "task", "examples": rows}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file_tasks(TaskFile(kind=kind, path=str(path), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_layout_is_recognized_by_its_fields_in_every_format(tmp_path: Path, name: str, suffix: str):
    kind, row, options, right = ROWS[name]
    (task,) = read(tmp_path, kind, [row], suffix)
    assert (task.items[0].options, task.items[0].right) == (options, right)
    assert task.name == "bench"


def test_truthfulqa_is_two_tasks(tmp_path: Path):
    one, many = read(tmp_path, "choice", [TRUTHFUL], ".nested.json")
    assert (one.name, one.metric, one.items[0].right) == ("bench_mc1", "accuracy", (0,))
    assert (many.name, many.metric, many.items[0].right) == ("bench_mc2", "mass", (0, 1))
    assert many.chance == pytest.approx(2 / 3)
    assert one.items[0].group == "Facts"


def test_answers_are_checked_by_their_last_number_or_their_words(tmp_path: Path):
    rows = [
        {"question": "6 by 7?", "answer": "It is six times seven. #### 1,042"},
        {"question": "Ice?", "answer": "Water"},
    ]
    (task,) = read(tmp_path, "generate", rows, name="sums")
    number, words = (item.check for item in task.items)
    assert number is not None
    assert words is not None
    assert (number("It is 3, no, 1042."), number("1042 or 3"), number("")) == (True, False, False)
    assert (words(" water "), words("frozen water")) == (True, False)


def test_texts_are_measured_by_domain(tmp_path: Path):
    (task,) = read(tmp_path, "perplexity", [{"text": "Some text.", "domain": "web"}, {"text": ""}])
    assert [(item.options, item.group) for item in task.items] == [(("Some text.",), "web")]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("choice", {"a": 1}, "has the fields a, which are in no layout of kind choice .*TruthfulQA: question"),
        ("choice", {**ROWS["mmlu"][1], "answer": "C"}, "row 0 is 'C', which names none of 2 options"),
        ("choice", {**TRUTHFUL, "mc1_targets": {"choices": ["a"], "labels": [0]}}, "1 choices, and labels"),
        ("pairs", {**ROWS["llmbar"][1], "label": 3}, "must be 1 or 2"),
        ("pairs", {"chosen": "Hello", "rejected": "No"}, "has no turn of the Assistant"),
    ],
)
def test_the_faults_of_a_file_are_named_with_their_rows(tmp_path: Path, kind: str, row: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read(tmp_path, kind, [row], ".json")


BAD: dict[str, tuple[str, str]] = {
    "no_json": ("{", "no JSON object|not JSON|JSON"),
    "fields": ('{"question": "Ice?", "choices": ["a"]}', "line 3 lacks one of the fields of MMLU"),
    "answer": ('{"question": "Ice?", "choices": ["a"], "answer": "C"}', "line 3 is 'C', which names none of 1 options"),
    "type": ('{"question": "Ice?", "choices": 7, "answer": 0}', "line 3 cannot be read as MMLU: TypeError"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    line, message = BAD[name]
    good = json.dumps(ROWS["mmlu"][1])
    path = tmp_path / "bench.jsonl"
    path.write_text("\n".join([good, good, line, *[good] * 7]))
    (task,) = file_tasks(TaskFile(kind="choice", path=str(path), max_bad_share=0.1))
    # Items keep the numbers of their rows.
    assert [item.id for item in task.items] == [str(number) for number in range(10) if number != 2]
    assert len(task.bad_rows) == 1
    assert re.search(message, task.bad_rows[0])
    assert "bench.jsonl line 3" in task.bad_rows[0]
    said = capsys.readouterr().err
    assert f"1 of 10 rows of {path} cannot be used and are left out" in said
    assert task.bad_rows[0] in said
    with pytest.raises(UserError, match=r"line 3.* \(1 of 10 rows .* lets 0.09 of them be left out"):
        file_tasks(TaskFile(kind="choice", path=str(path), max_bad_share=0.09))


def test_a_file_without_a_row_to_measure_is_refused_with_what_became_of_all(tmp_path: Path):
    good = "\n\nHuman: {}?\n\nAssistant: Yes"
    rows = [{"chosen": good.format("a"), "rejected": good.format(name)} for name in "bc"]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    settings = TaskFile(kind="pairs", path=str(tmp_path / "pairs.jsonl"), max_bad_share=0.5)
    with pytest.raises(
        UserError, match=r"^3 rows of .*0 left, .*\(cannot be used 1, left out 2\).*conversations of chosen"
    ):
        file_tasks(settings)
    (tmp_path / "pairs.jsonl").write_text("{broken\n[1]")
    with pytest.raises(
        UserError, match=r"^2 rows of .*0 left, .*\(cannot be used 2\).*fix what is wrong, first: .*line 1"
    ):
        file_tasks(settings.model_copy(update={"max_bad_share": 1.0}))


def test_bad_rows_are_in_the_figures(tmp_path: Path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps(ROWS["mmlu"][1]) + "\n{")
    (task,) = file_tasks(TaskFile(kind="choice", path=str(path), max_bad_share=0.5))
    answers = {"bench": {"one": TaskAnswers([ItemResult("0", 1.0, "water", [])], [])}}
    assert task_figures([task], answers)["bench"]["bad_rows"] == list(task.bad_rows)
    console = Console(record=True, width=200)
    print_tasks(task_figures([task], answers), console)
    assert "could not be used, and were left out: 1 of bench" in console.export_text()


def test_the_files_of_tasks_are_handed_to_decontamination(recipe_path: Path, tmp_path: Path):
    bench = tmp_path / "bench.jsonl"
    tasks = f"evaluate.tasks=[cloze, {{kind: choice, path: {bench}}}]"
    given = load_recipe(recipe_path, [tasks]).corpus.decontaminate
    assert given is not None
    assert given.files == [str(bench)]
    own = load_recipe(recipe_path, [tasks, "corpus.decontaminate={files: [other.json], n: 8}"]).corpus.decontaminate
    assert own is not None
    assert (own.files, own.n) == (["other.json", str(bench)], 8)
    assert load_recipe(recipe_path, [tasks, "evaluate.decontaminate=false"]).corpus.decontaminate is None


def test_decontamination_reads_parquet(tmp_path: Path):
    parquet.write_table(pa.Table.from_pylist([{"id": 7, "question": "What is ice?"}]), tmp_path / "bench.parquet")
    assert list(read_items(tmp_path / "bench.parquet")) == [("bench.parquet:7", ["What is ice?"])]
