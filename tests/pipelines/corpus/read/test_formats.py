"""Formats of files: each is read under all its suffixes, and records that cannot be read are named."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cluster.errors import UserError
from cluster.recipe.corpus import Source
from pipelines.corpus.read.records import BadRecord, Document
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.corpus.tables import rows_at_once

TEXTS = ["Grüße, alle", "two\nlines", 'with "quotes"']
OBJECTS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def read(path: Path, **settings: object) -> tuple[list[str], list[str]]:
    """Returns the texts of a source, and the reasons of its bad records."""
    source = Source.model_validate({"kind": "files", "path": str(path), **settings})
    items = [item for split in plan_splits([source], 1) for item in read_split(split)]
    return (
        [item.text for item in items if isinstance(item, Document)],
        [item.reason for item in items if isinstance(item, BadRecord)],
    )


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


CONTENTS = {
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "c4.json": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "array.json": json.dumps(OBJECTS),
    "pretty.json": json.dumps(OBJECTS, indent=2, ensure_ascii=False),
    "objects.json": "\n".join(json.dumps(row, indent=1) for row in OBJECTS),
    "table.csv": 'id,text\r\n0,"Grüße, alle"\r\n1,"two\nlines"\r\n2,"with ""quotes"""\r\n',
    "table.tsv": 'id\ttext\n0\tGrüße, alle\n1\t"two\nlines"\n2\t"with ""quotes"""\n',
}


@pytest.mark.parametrize("suffix", ["", ".gz", ".GZ", ".zst"])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_is_read_packed_or_not_and_in_any_case(tmp_path: Path, name: str, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".GZ": gzip.compress, ".zst": zstd}[suffix]
    path = tmp_path / f"{name.upper() if suffix == '.GZ' else name}{suffix}"
    path.write_bytes(pack(CONTENTS[name].encode()))
    assert read(path) == (TEXTS, [])


def test_packed_texts_are_read_whole_or_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"eins\nzwei\n"))
    assert read(tmp_path / "a.txt.gz") == (["eins\nzwei\n"], [])
    assert read(tmp_path / "a.txt.gz", text_lines=True) == (["eins", "zwei"], [])


def test_a_text_may_be_nested_or_a_list(tmp_path: Path) -> None:
    rows = [
        {"a": {"b": "one"}},
        {"a": [{"b": "two"}, {"c": "no"}, {"b": ["three", "four"]}][:2]},
        {"a": {"b": ["three", "four"]}},
        {"a.b": "five"},
        {"a": {"c": "none"}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, (bad,) = read(tmp_path / "a.jsonl", text_field="a.b")
    assert texts == ["one", "two", "three\nfour", "five"]
    assert "line 5 has no 'a.b', only a;" in bad
    pq.write_table(pa.table({"a": [{"b": "one"}, {"b": "two"}]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", text_field="a.b") == (["one", "two"], [])


def test_binary_columns_that_are_utf8_are_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["Grüße".encode(), b"\xff"], pa.binary())}), tmp_path / "a.parquet")
    texts, (bad,) = read(tmp_path / "a.parquet")
    assert texts == ["Grüße"]
    assert "row 2: 'text' is not utf-8 at byte 0" in bad


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_an_encoding_other_than_utf8_is_named_in_the_recipe(tmp_path: Path, name: str) -> None:
    content = {
        "a.txt": "안녕",
        "a.jsonl": '{"text": "안녕"}\n',
        "a.csv": "text\n안녕\n",
        "a.json": '[{"text": "안녕"}]',
    }
    (tmp_path / name).write_bytes(content[name].encode("cp949"))
    assert read(tmp_path / name, encoding="euc-kr") == (["안녕"], [])
    texts, (bad,) = read(tmp_path / name)
    assert not texts
    assert "UTF-8" in bad or "bytes that its encoding lacks" in bad


def test_encodings_that_do_not_exist_or_cannot_be_cut_into_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="Python knows no encoding 'utf-9'"):
        Source(path="x", encoding="utf-9")
    (tmp_path / "a.jsonl").write_text("{}", encoding="utf-16")
    with pytest.raises(UserError, match="into lines in utf-16; convert it"):
        read(tmp_path / "a.jsonl", encoding="utf-16")
    (tmp_path / "b.txt").write_text("Grüße", encoding="utf-16")
    assert read(tmp_path / "b.txt", encoding="utf-16") == (["Grüße"], [])


@pytest.mark.parametrize(
    ("content", "texts", "complaint"),
    [
        ('[{"text": "one"}, {"text": 2}, {"text": "three"}]', ["one", "three"], "row 2: 'text' is int"),
        ('[{"text": "one"}, {"text": "tw', ["one"], "nobody knows how much is missing"),
        ('[{"text": "one"}, broken]', ["one"], "nobody knows how much is missing"),
    ],
)
def test_damage_in_an_array_is_said(tmp_path: Path, content: str, texts: list[str], complaint: str) -> None:
    (tmp_path / "a.json").write_text(content)
    found, (bad,) = read(tmp_path / "a.json")
    assert found == texts
    assert complaint in bad


def test_files_that_are_not_read_are_named_and_refused_if_they_are_most(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(CONTENTS["lines.jsonl"])
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    (tmp_path / "README.md").write_text("x" * 1000)
    source = Source(path=str(tmp_path))
    (split,) = plan_splits([source], 1)
    assert split.skipped_files == (f"{tmp_path}/README.md", f"{tmp_path}/b.pdf")
    (tmp_path / "c.pdf").write_bytes(b"%PDF" * 1000)
    with pytest.raises(UserError, match=r"2 of the files of .*, 4,004 bytes and most of it, .*such as .*b\.pdf: "):
        plan_splits([source], 1)
    assert read(tmp_path, skip_other_files=True) == (TEXTS, [])


def test_rows_with_more_fields_than_names_lose_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n0,one, and more\n1,two\n2\n")
    texts, bad = read(tmp_path / "a.csv")
    assert texts == ["two"]
    assert bad[0].endswith("row 1 has 3 fields and the first row 2; put the text in quotation marks")
    assert len(bad) == 2


def test_large_rows_are_read_in_small_batches(tmp_path: Path) -> None:
    sizes = [10, 3 << 20]
    for size in sizes:
        with pq.ParquetWriter(tmp_path / f"{size}.parquet", pa.schema([("text", pa.string())])) as writer:
            for _ in range(3):
                writer.write_table(pa.table({"text": [letter * size for letter in "abcdefghij"]}))
    assert [rows_at_once(pq.ParquetFile(tmp_path / f"{size}.parquet")) for size in sizes] == [500, 21]
