"""Sources of every kind, and broken files named by line."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.failures import UserError
from cluster.recipe import Source
from pipelines.corpus import sources
from pipelines.corpus.packages import docstrings, standard_library
from pipelines.corpus.sources import plan_splits, read_split, source_names


def texts_of(*recipe_sources: Source, seed: int = 1) -> list[str]:
    return [document.text for split in plan_splits(recipe_sources, seed) for document in read_split(split)]


def files(path: Path, **settings: object) -> Source:
    return Source.model_validate({"kind": "files", "path": str(path), **settings})


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "b one"}\n\n{"text": "b two"}\n')
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "c"}\n')
    pq.write_table(pa.table({"text": ["d one", "d two"]}), tmp_path / "d.parquet")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\nwhole file")
    (tmp_path / "notes.md").write_text("not text to train on")
    assert texts_of(files(tmp_path)) == ["a\nwhole file", "b one", "b two", "c", "d one", "d two"]


def test_ids_name_the_source_the_file_and_the_row(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    ids = [document.id for split in plan_splits([files(tmp_path)], 1) for document in read_split(split)]
    assert ids == [f"{tmp_path}:b.jsonl:0", f"{tmp_path}:b.jsonl:1"]


def test_a_limit_counts_over_all_files_of_a_source(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"body": f"{name}{i}"}) + "\n" for i in range(2)))
    source = files(tmp_path / "*.jsonl", text_field="body", limit=3)
    assert texts_of(source) == ["a0", "a1", "b0"]


def test_large_sources_are_cut_into_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    monkeypatch.setattr(sources, "SPLIT_BYTES", 250)
    planned = plan_splits([files(tmp_path)], 1)
    assert [[Path(file).name for file in split.files] for split in planned] == [["a.txt", "b.txt"], ["c.txt"]]
    assert [split.name for split in planned] == ["part-00000", "part-00001"]


def test_sources_of_the_same_kind_have_different_names() -> None:
    names = source_names([Source(kind="randfacts"), Source(kind="countries"), Source(kind="randfacts")])
    assert names == ["randfacts", "countries", "randfacts#2"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"text": "good"}\n{"text": "cut', "line 2 is not valid JSON"),
        (b'{"text": "good"}\n\n["a list"]\n', "line 3 is not an object"),
        (b'{"text": "good"}\n{"body": "x", "id": 1}\n', "line 2 has no 'text', only body, id"),
        (b'{"text": 7}\n', "line 1: 'text' is int, not text"),
        (b'{"text": "\xff"}\n', "line 1 is not UTF-8 at byte 10"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        texts_of(files(path))
    assert f"{path} {complaint}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for name, complaint in [
        ("cut.jsonl.gz", "is damaged gzip"),
        ("odd.parquet", "is not a readable Parquet file"),
        ("other.parquet", "has no column 'text', only body"),
        ("latin.txt", "is not UTF-8 at byte 3"),
    ]:
        with pytest.raises(UserError, match=complaint) as raised:
            texts_of(files(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)


def test_a_path_must_match_files_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mend the path"):
        plan_splits([files(tmp_path / "absent")], 1)
    (tmp_path / "page.html").write_text("<p>")
    with pytest.raises(UserError, match=r"cannot read .*page\.html"):
        plan_splits([files(tmp_path / "page.html")], 1)


def test_packaged_texts_are_the_same_for_the_same_seed() -> None:
    facts = texts_of(Source(kind="randfacts"))
    assert len(facts) > 1000
    assert facts == texts_of(Source(kind="randfacts"))
    assert facts != texts_of(Source(kind="randfacts"), seed=2)
    dialogues = texts_of(Source(kind="chatterbot"))
    assert len(dialogues) == 2026
    assert all("\n" in dialogue for dialogue in dialogues[:20])
    countries = texts_of(Source(kind="countries", limit=50))
    assert len(countries) == 50
    assert countries == texts_of(Source(kind="countries", limit=50))


def test_docstrings_are_found_without_importing() -> None:
    path = next(str(file) for file in standard_library() if file.name == "textwrap.py")
    found = dict(docstrings([path]))
    assert found["textwrap:0"] == "Text wrapping and filling."
    assert any(text.startswith("Dedent") or "common leading whitespace" in text for text in found.values())
    topics = next(str(file) for file in standard_library() if file.name == "topics.py")
    assert 'The "for" statement' in dict(docstrings([topics]))["pydoc_data.topics:for"]
