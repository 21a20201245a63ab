"""Imports and exports of preference files: a round trip loses nothing."""

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.feedback import COMPARED, GOLD, Completion, Feedback, FeedbackPrompt, Ranking
from pipelines.cli.main import main
from pipelines.data.feedback.io import export_file, import_file
from tests.pipelines.data.feedback.preference_files import REPLY, ROWS, TURN, read, write


@pytest.mark.parametrize("kind", ROWS)
def test_a_round_trip_loses_nothing_and_a_second_import_adds_nothing(
    kind: str, database: Feedback, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.jsonl", ROWS[kind])
    assert import_file(database, kind, path, "trial", "them", 0.15).new == len(ROWS[kind])
    counts = database.counts()
    assert import_file(database, kind, path, "trial", "them", 0.15).new == 0
    assert database.counts() == counts
    assert export_file(database, kind, tmp_path / "out.jsonl").rows == len(ROWS[kind])
    assert read(tmp_path / "out.jsonl") == ROWS[kind]


def test_gold_rankings_are_not_a_persons(database: Feedback, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", ROWS["lists"])
    assert import_file(database, "lists", path, "trial", "them", 0.15, gold=True).new == 2
    assert {row.annotator for row in database.judgements()} == {GOLD}
    assert len(database.gold_tasks("ann")) == 2
    assert database.open_tasks("ann", people=9) == []
    with pytest.raises(UserError, match="nothing to export"):
        export_file(database, "lists", tmp_path / "out.jsonl")


def test_rankings_of_excluded_annotators_are_not_exported(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "lists", write(tmp_path / "in.jsonl", ROWS["lists"]), "trial", "them", 0.15)
    database.exclude("ann")
    assert export_file(database, "lists", tmp_path / "out.jsonl").rows == 1
    assert len(database.rankings()) == 1
    database.exclude("ann", excluded=False)
    assert len(database.rankings()) == 2
    with pytest.raises(UserError, match="no annotator nobody"):
        database.exclude("nobody")


def test_rows_that_cannot_be_read_are_listed_and_the_others_imported(database: Feedback, tmp_path: Path) -> None:
    path = write(tmp_path / "in[1].jsonl", [*ROWS["lists"], {"prompt": "a"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"{not JSON\n\xff\n")
    rejected = tmp_path / "run" / "rejected.jsonl"
    with pytest.raises(UserError, match=r"3 of 5 rows in .* cannot be used, and --max-bad lets 0.5"):
        import_file(database, "lists", path, "trial", "them", 0.15, max_bad_share=0.5, quarantine_file=rejected)
    assert database.counts().prompts == 0
    found = import_file(database, "lists", path, "trial", "them", 0.15, max_bad_share=0.6, quarantine_file=rejected)
    assert (found.new, found.rows, len(found.bad)) == (2, 5, 3)
    assert [(row["place"], row["excerpt"]) for row in read(rejected)] == [
        (f"{path} line 3", '{"prompt": "a"}'),
        (f"{path} line 4", "{not JSON\n"),
        (f"{path} line 5", "\\xff\n"),
    ]


def test_a_column_of_the_imported_file_does_not_replace_what_is_exported(database: Feedback, tmp_path: Path) -> None:
    row = {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1], "chosen": "b", "note": "kept"}
    import_file(database, "lists", write(tmp_path / "in.jsonl", [row]), "trial", "them", 0.15)
    export_file(database, "trl", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"prompt": "a", "chosen": "c", "rejected": "b", "note": "kept"}]


def test_votes_between_models_are_no_rankings_of_answers(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "trl", write(tmp_path / "in.jsonl", ROWS["trl"][:1]), "trial", "them", 0.15)
    name = f"{COMPARED}abc"
    database.add_prompts([FeedbackPrompt(id=name, messages=[TURN], details={"compare": "ann"})])
    keys = database.add_completions(
        [
            Completion(prompt_id=name, index=side, text=f"by {model}", token_ids=[], model=model, weights="w")
            for side, model in enumerate(("sft", "policy"))
        ]
    )
    ranks = {str(key): rank for key, rank in zip(keys, [2, 1], strict=True)}
    database.add_ranking(Ranking(prompt_id=name, annotator="ann", ranks=ranks))
    database.add_ranking(Ranking(prompt_id=name, annotator="bob", all_bad=True))
    found = export_file(database, "trl", tmp_path / "out.jsonl")
    assert (found.rows, found.votes) == (1, 2)
    assert export_file(database, "votes", tmp_path / "votes.jsonl").rows == 2
    assert [(row["models"], row["ranks"], row["annotator"]) for row in read(tmp_path / "votes.jsonl")] == [
        (["sft", "policy"], [2, 1], "ann"),
        (["sft", "policy"], None, "bob"),
    ]


def test_values_that_json_cannot_hold_are_replaced_and_counted(database: Feedback, tmp_path: Path) -> None:
    row = {"prompt": "a\ud800", "completions": ["b", "c"], "ranks": [1, 2], "score": float("nan"), "more": [1.5]}
    rows = [row, row | {"prompt": "a", "score": 1}]
    import_file(database, "lists", write(tmp_path / "in.jsonl", rows), "trial", "them", 0.15)
    for name in ("out.jsonl", "out.json"):
        found = export_file(database, "lists", tmp_path / name)
        assert (found.rows, found.repaired) == (2, 1)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "NaN" not in text
    first = read(tmp_path / "out.jsonl")[0]
    assert (first["prompt"], first["score"], first["more"]) == ("a\ufffd", None, [1.5])


def test_a_list_is_exported_as_all_its_pairs_without_ties(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "lists", write(tmp_path / "in.jsonl", ROWS["lists"][:1]), "trial", "them", 0.15)
    export_file(database, "trl", tmp_path / "out.jsonl")
    pairs = [(row["chosen"], row["rejected"]) for row in read(tmp_path / "out.jsonl")]
    assert sorted(pairs) == [("c", "b"), ("c", "d")]


def test_written_answers_are_exported_as_conversations(database: Feedback, tmp_path: Path) -> None:
    import_file(database, "trl", write(tmp_path / "in.jsonl", ROWS["trl"]), "trial", "them", 0.15)
    prompt = database.prompts()[0]
    database.save_ranking(Ranking(prompt_id=prompt.id, annotator="ann", all_bad=True, better="mine"))
    export_file(database, "answers", tmp_path / "out.jsonl")
    answer = {"role": "assistant", "content": "mine"}
    assert read(tmp_path / "out.jsonl") == [{"messages": [{"role": "user", "content": "a"}, answer]}]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("hh-rlhf", {"chosen": "a", "rejected": "b"}, "must share a beginning"),
        ("trl", {"prompt": "a", "chosen": "b"}, "rejected must be text"),
        ("trl", {"prompt": [TURN], "chosen": [REPLY, TURN], "rejected": [REPLY]}, "one turn of the assistant"),
        ("trl", {"prompt": [TURN | {"name": "x"}], "chosen": [REPLY], "rejected": [REPLY]}, "and nothing else"),
        ("lists", {"prompt": "a", "completions": ["b", "c"], "ranks": [1]}, "2 completions and 1 ranks"),
        ("pandalm", ROWS["pandalm"][0] | {"annotator2": 3}, "annotator2 must be 0, 1 or 2, not 3"),
        (
            "ultrafeedback",
            {"instruction": "a", "completions": [{"response": "b"}] * 2},
            "need a number as fine-grained",
        ),
        ("openassistant", {"prompt": {"text": "a", "role": "bot", "replies": []}}, "'bot' is unknown"),
        ("nothing", {}, "not a format"),
    ],
)
def test_an_error_names_the_row_and_nothing_is_added(
    kind: str, row: dict[str, Any], message: str, database: Feedback, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.jsonl", [*ROWS.get(kind, []), row])
    with pytest.raises(UserError, match=message):
        import_file(database, kind, path, "trial", "them", 0.15)
    assert database.counts().prompts == 0


def test_a_file_without_ranked_answers_is_refused_with_what_became_of_its_rows(
    database: Feedback, tmp_path: Path
) -> None:
    path = write(tmp_path / "in.jsonl", [{"prompt": {"text": "a", "role": "prompter", "replies": []}}, {"prompt": 1}])
    with pytest.raises(UserError, match=r"^2 rows .*0 left.*\(cannot be used 1, without ranked answers 1\)"):
        import_file(database, "openassistant", path, "trial", "them", 0.15, max_bad_share=0.5)


def test_an_impossible_export_is_refused_and_keeps_the_old_file(database: Feedback, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(UserError, match="nothing to export"):
        export_file(database, "trl", out)
    import_file(database, "trl", write(tmp_path / "in.jsonl", ROWS["trl-messages"]), "trial", "them", 0.15)
    with pytest.raises(UserError, match="export as trl-messages"):
        export_file(database, "trl", out)
    for kind, source in (
        ("pandalm", "PandaLM"),
        ("ultrafeedback", "UltraFeedback"),
        ("openassistant", "Open-Assistant"),
    ):
        with pytest.raises(UserError, match=f"only what was imported from {source}"):
            export_file(database, kind, out)
    assert out.read_text() == "old"


def test_an_error_says_why_a_file_cannot_be_written(database: Feedback, tmp_path: Path) -> None:
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "gone" / "out.jsonl", "there is no folder")):
        with pytest.raises(UserError, match=why):
            export_file(database, "trl", path)


def test_commands_print_their_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = write(tmp_path / "in.jsonl", ROWS["trl"]), ["--run", str(tmp_path)]
    for words, code, expected in (
        (["feedback", "import", "trl", str(source), *run], 0, "2 new prompts"),
        (["feedback", "export", "lists", str(tmp_path / "out.jsonl"), *run, "--name", "in"], 0, "2 rows"),
        (["feedback", "export", "lists", str(tmp_path / "out.jsonl"), *run, "--name", "other"], 2, "nothing to export"),
        (["feedback", "export", "thumbs", str(tmp_path / "out.jsonl"), *run, "--name", "in"], 2, "leave out --name in"),
        (
            ["annotator", "add", "ann", *run],
            0,
            "A link signs in: the page's address, such as http://127.0.0.1:8001/label#token=",
        ),
        (["annotator", "add", "ann", *run], 2, "an annotator already"),
        (["annotator", "exclude", "ann", *run], 0, "ann is excluded"),
        (["annotator", "list", *run], 0, "ann\t0 judged\texcluded"),
        (["annotator", "include", "ann", *run], 0, "ann counts"),
        (["annotator", "list", *run], 0, "ann\t0 judged\nimported\t2 judged"),
        (["feedback", "count", *run], 0, "prompts\t2\ncompletions\t4\nrankings\t2\nskipped\t0\nall bad\t0"),
        (["label", str(tmp_path / "nowhere")], 2, "not a run folder"),
        (["score", str(tmp_path), str(source), "out.jsonl"], 2, "it has no recipe.yaml"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        output = capsys.readouterr()
        assert (end.value.code, expected in output.out + output.err) == (code, True), output


@pytest.mark.parametrize(
    "words",
    [
        ("annotator", "list"),
        ("annotator", "agreement"),
        ("annotator", "exclude", "ann"),
        ("feedback", "count"),
        ("feedback", "export", "lists", "out.jsonl"),
        ("feedback", "forget", "--text", "a"),
        ("feedback", "delete", "rankings", "1"),
    ],
)
def test_a_command_that_needs_a_database_makes_none_in_another_folder(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words, "--run", str(tmp_path)])
    assert end.value.code == 2
    assert f"{tmp_path} is no run folder and has no feedback database" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_row_with_half_a_character_is_left_out_and_named(database: Feedback, tmp_path: Path):
    path = tmp_path / "lists.jsonl"
    good = '{"prompt": "你好?", "completions": ["مرحبا", "b"], "ranks": [1, 2]}\n'
    path.write_text(good + good.replace('"b"', '"\\ud800"'), encoding="utf-8")
    rejected = tmp_path / "rejected.jsonl"
    found = import_file(database, "lists", path, "trial", "them", 0.15, max_bad_share=0.5, quarantine_file=rejected)
    assert (found.new, len(found.bad)) == (1, 1)
    assert "half of a surrogate pair" in rejected.read_text(encoding="utf-8")
