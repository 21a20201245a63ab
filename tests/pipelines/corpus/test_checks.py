"""Corpora that are refused: bad records, too few documents, and files that are checked first."""

from pathlib import Path

import pytest

from cluster.errors import UserError
from tests.pipelines.corpus.stage_runs import build, make_recipe

pytestmark = pytest.mark.slow


def test_bad_records_end_the_stage_name_the_first_of_each_file_and_leave_nothing(
    ray_session: None, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    lines = '{"text": "a line that is quite all right"}\n' * 6
    (tmp_path / "texts" / "a.jsonl").write_text(lines + "{broken\n{broken\n")
    (tmp_path / "texts" / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "texts" / "c.txt").touch()
    out = tmp_path / "corpus"
    with pytest.raises(UserError) as found:
        build(make_recipe({"kind": "files", "path": str(tmp_path / "texts")}), out)
    assert "a.jsonl line 7 is not valid JSON" in str(found.value)
    assert "b.txt is not UTF-8 at byte 3; set encoding of this source" in str(found.value)
    assert "(3 of 9 records of this source cannot be read, in 2 files, and" in str(found.value)
    assert not out.exists()


def test_a_corpus_without_documents_is_an_error(ray_session: None, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"text": "short"}\n' * 4)
    too_short = r"^4 documents of corpus\.sources read, 0 left, .*\(rule too few words 4\).*corpus\.min_words \(now 5\)"
    with pytest.raises(UserError, match=too_short):
        build(make_recipe({"kind": "files", "path": str(path)}), tmp_path / "rules")
    path.write_text('{"text": "always the very same old line"}\n' * 4)
    old = '{"text": "this text is in an earlier corpus and in an exam: one two three four five six seven"}\n'
    path.write_text(old + '{"text": "always the very same old line"}\n' * 3 + "{broken\n" + '{"text": "a a b b"}\n' * 2)
    (tmp_path / "asked.jsonl").write_text(old)
    source = {"kind": "files", "path": str(path)}
    asked = {"files": [str(tmp_path / "asked.jsonl")]}
    whole = (
        r"^7 documents of corpus\.sources read, 1 left, and 2 needed, one to train on and one to hold out "
        r"\(cannot be read 1, rule too few words 2, evaluation items 1, exact duplicates 2\); most are lost to "
        r"'rule too few words': change corpus\.min_words \(now 5\), or add sources$"
    )
    with pytest.raises(UserError, match=whole):
        build(make_recipe(source, decontaminate=asked, max_bad_share=0.2), tmp_path / "copies")
    # Nothing stays where no document passes the rules; otherwise finished parts stay for a later run.
    assert [(tmp_path / name).exists() for name in ("rules", "copies")] == [False, True]


def test_evaluation_files_and_previous_corpora_are_checked_before_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_text('{"text": "a line that is quite all right"}\n' * 6)
    (tmp_path / "asked.json").write_text("[")
    source = {"kind": "files", "path": str(tmp_path / "file.jsonl")}
    with pytest.raises(UserError, match=r"cannot read .*asked\.json"):
        build(make_recipe(source, decontaminate={"files": [str(tmp_path / "asked.json")]}), tmp_path / "corpus")
    with pytest.raises(UserError, match=r"has no index/index\.json"):
        build(make_recipe(source, previous_corpora=[str(tmp_path)]), tmp_path / "corpus")
    assert list((tmp_path / "corpus").iterdir()) == []
