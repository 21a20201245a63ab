"""Sources of every kind, and broken files named by line."""

import gzip
import json
import os
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.recipe.corpus import Source
from pipelines.corpus.read import files as files_module
from pipelines.corpus.read import sources
from pipelines.corpus.read.packages import docstrings, standard_library
from pipelines.corpus.read.records import BadRecord, Document, Skipped
from pipelines.corpus.read.sources import plan_splits, read_split, source_names
from tests.demo_recipe import COUNTRIES, DIALOGUES, RANDOM_FACTS


def items_of(*recipe_sources: Source, seed: int = 1) -> list[Document | BadRecord]:
    return [item for split in plan_splits(recipe_sources, seed) for item in read_split(split)]


def texts_of(*recipe_sources: Source, seed: int = 1) -> list[str]:
    items = items_of(*recipe_sources, seed=seed)
    assert not [item for item in items if isinstance(item, BadRecord)]
    return [item.text for item in items if isinstance(item, Document)]


def read(path: Path) -> tuple[list[str], list[BadRecord]]:
    """Returns the texts of a file that can be read, and the bad records."""
    items = items_of(files(path))
    texts = [item.text for item in items if isinstance(item, Document)]
    return texts, [item for item in items if isinstance(item, BadRecord)]


def files(path: Path, **settings: object) -> Source:
    return Source.model_validate({"kind": "files", "path": str(path), **settings})


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "b one"}\n\n{"text": "b two"}\n')
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "c"}\n')
    pq.write_table(pa.table({"text": ["d one", "d two"]}), tmp_path / "d.parquet")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\nwhole file")
    (tmp_path / "README.md").write_text("not text to train on")
    (tmp_path / "e.MD").write_text("# notes")
    with gzip.open(tmp_path / "f.rst.gz", "wt") as file:
        file.write("more\n====\n")
    expected = ["a\nwhole file", "b one", "b two", "c", "d one", "d two", "# notes", "more\n===="]
    assert [text.rstrip("\n") for text in texts_of(files(tmp_path))] == expected
    # Named by its path, it is meant.
    assert texts_of(files(tmp_path / "README.md")) == ["not text to train on"]


def test_ids_name_the_source_the_file_and_the_place_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    ids = [item.id for item in items_of(files(tmp_path)) if isinstance(item, Document)]
    assert ids == [f"{tmp_path}:b.jsonl:0", f"{tmp_path}:b.jsonl:14"]


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


def test_sources_have_names_of_their_own_without_credentials() -> None:
    given = ["a#1.txt", "a#2.txt", "a#2.txt", "s3://key:secret@b/x?secret_key=y", "s3://other:key@b/x"]
    named = [Source(path=path) for path in given] + [Source(path="x", name=name) for name in ("n", "n", "n#2")]
    assert source_names(named) == [
        *("a#1.txt", "a#2.txt", "a#2.txt#2", "s3://b/x", "s3://b/x#2"),
        *("n", "n#2", "n#2#2"),
    ]


def test_a_file_name_that_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text('{"text": "x"}\n{broken\n')
    document, bad = items_of(files(tmp_path))
    assert isinstance(document, Document)
    assert document.id == f"{tmp_path}:caf\\xe9.jsonl:0"
    assert isinstance(bad, BadRecord)
    assert bad.file == f"{tmp_path}/caf\\xe9.jsonl"
    assert bad.reason.startswith(f"{tmp_path}/caf\\xe9.jsonl line 2 ")


def test_sources_of_the_same_kind_have_different_names() -> None:
    names = source_names([Source(**RANDOM_FACTS), Source(**COUNTRIES), Source(**RANDOM_FACTS)])
    assert names == [RANDOM_FACTS["function"], "countries", f"{RANDOM_FACTS['function']}#2"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut', "is not valid JSON"),
        (b'["a list"]', "is not an object"),
        (b'{"body": "x", "id": 1}', "has no 'text', only body, id"),
        (b'{"text": 7}', ": 'text' is int, not text"),
        (b'{"text": "x", "n": %s}' % (b"1" * 5000), "has a number of too many digits"),
        (b'{"text": null}', ": 'text' is null"),
        (b'{"text": "\xff"}', "is not UTF-8 at byte 10; set encoding of this source, such as cp1252, or fix the line"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"text": "before"}\n\n' + line + b'\n{"text": "after"}\n')
    texts, (bad,) = read(path)
    assert texts == ["before", "after"]
    assert f"{path} line 3{'' if complaint[0] == ':' else ' '}{complaint}" in bad.reason
    assert "\n" not in bad.reason
    assert (bad.file, bad.offset) == (str(path), 20)
    assert bad.excerpt.startswith(line[:9].decode())


def test_a_line_of_100_mb_is_left_out_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    texts, (bad,) = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert texts == ["before", "after"]
    assert bad.offset == 19
    assert "line 2 has 104,857,613 bytes" in bad.reason
    assert peak < 110 << 20


def test_a_text_that_is_too_large_is_left_out_or_read_by_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAXIMUM_RECORD_BYTES", 100)
    path = tmp_path / "file.txt"
    path.write_text("a line\n" * 20)
    texts, (bad,) = read(path)
    assert not texts
    assert "more than 100 bytes; split it or set text_lines" in bad.reason
    assert texts_of(files(path, text_lines=True)) == ["a line"] * 20


def test_zstd_lines_are_read_over_several_frames(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number} {'é' * 20}"}) + "\n" for number in range(3000)]
    halves = ["".join(lines[:1000]).encode(), "".join(lines[1000:]).encode()]
    whole = b"".join(pa.compress(half, codec="zstd", asbytes=True) for half in halves)
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    texts, bad = read(tmp_path)
    assert not bad
    assert texts == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_truncated_file_is_read_up_to_its_end(tmp_path: Path, kind: str) -> None:
    rng = random.Random(1)
    content = "".join(json.dumps({"text": f"{n} {rng.random()}"}) + "\n" for n in range(20_000)).encode()
    whole = gzip.compress(content) if kind == "gz" else pa.compress(content, codec="zstd", asbytes=True)
    path = tmp_path / f"cut.jsonl.{kind}"
    path.write_bytes(whole[: len(whole) // 2])
    texts, bad = read(path)
    assert texts[0].startswith("0 ")
    assert 5_000 < len(texts) < 15_000
    assert content.startswith("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    assert f"{path} is damaged after byte {bad[-1].offset} of its content ({'gzip' if kind == 'gz' else 'zstd'}" in str(
        bad
    )
    assert 0 < bad[-1].offset < len(content)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "odd.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    pq.write_table(pa.table({"text": ["one", None, "three"]}), tmp_path / "null.parquet")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for name in ("empty.txt", "empty.jsonl", "empty.jsonl.gz", "empty.parquet", "empty.warc.gz", "empty.html"):
        (tmp_path / name).touch()
    texts, bad = read(tmp_path)
    assert texts == ["one", "three"]
    assert sum("is empty" in item.reason for item in bad) == 4
    skipped = [item.kind for item in items_of(files(tmp_path)) if isinstance(item, Skipped)]
    assert skipped == ["empty files", "empty files"]
    for name, complaint in [
        ("odd.parquet", "is damaged from its start (Parquet, "),
        ("null.parquet", "row 2: 'text' is null"),
        ("latin.txt", "is not UTF-8 at byte 3; set encoding of this source, such as cp1252"),
    ]:
        (found,) = [item for item in bad if item.file == str(tmp_path / name)]
        assert complaint in found.reason
    assert len(bad) == 7


def test_a_parquet_file_without_the_text_field_is_a_mistake_in_the_recipe(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has no column 'text', only body"):
        read(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.jsonl", '{"text": "one"}\n', "it is in UTF-16: convert it to UTF-8"),
        ("a.txt", "one", "set encoding of this source to utf-16"),
        ("a.csv", "text\none\n", "set encoding of this source to utf-16"),
        ("a.json", '[{"text": "one"}]', "set encoding of this source to utf-16"),
    ],
)
def test_a_file_in_utf_16_is_refused_with_what_to_set(tmp_path: Path, name: str, content: str, advice: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-16"))
    try:
        reason = read(tmp_path / name)[1][0].reason
    except UserError as error:
        reason = str(error)
    assert advice in reason


def test_bad_records_do_not_count_towards_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{broken\n{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    items = items_of(files(tmp_path / "a.jsonl", limit=2))
    assert [item.text for item in items if isinstance(item, Document)] == ["one", "two"]


def test_a_path_must_match_files_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fix the path"):
        plan_splits([files(tmp_path / "absent")], 1)
    (tmp_path / "page.pdf").write_text("%PDF")
    with pytest.raises(UserError, match=r"cannot read .*page\.pdf"):
        plan_splits([files(tmp_path / "page.pdf")], 1)


def test_packaged_texts_are_the_same_for_the_same_seed() -> None:
    facts = texts_of(Source(**RANDOM_FACTS))
    assert len(facts) > 1000
    assert facts == texts_of(Source(**RANDOM_FACTS))
    assert facts != texts_of(Source(**RANDOM_FACTS), seed=2)
    dialogues = texts_of(Source(**DIALOGUES))
    assert len(dialogues) == 2026
    assert all("\n" in dialogue for dialogue in dialogues[:20])
    countries = texts_of(Source(**COUNTRIES, limit=50))
    assert len(countries) == 50
    assert countries == texts_of(Source(**COUNTRIES, limit=50))


def test_docstrings_are_found_without_importing() -> None:
    path = next(str(file) for file in standard_library() if file.name == "textwrap.py")
    found = dict(docstrings(1, [path]))
    assert found["textwrap:0"] == "Text wrapping and filling."
    assert any(text.startswith("Dedent") or "common leading whitespace" in text for text in found.values())
    topics = next(str(file) for file in standard_library() if file.name == "topics.py")
    assert 'The "for" statement' in dict(docstrings(1, [topics]))["pydoc_data.topics:for"]


def numbered(seed: int, count: int = 2) -> list[Any]:
    return [("first", f"text of seed {seed}"), *(f"text {number}" for number in range(1, count))]


def broken(seed: int) -> list[str]:
    raise RuntimeError(f"no text for seed {seed}")


def test_texts_of_a_function_have_its_names_or_their_numbers() -> None:
    own = Source(kind="function", function=f"{__name__}:numbered", arguments={"count": 3}, name="own")
    found = list(read_split(plan_splits([own], 7)[0]))
    assert [one.id for one in found] == ["own:first", "own:1", "own:2"]
    assert [one.text for one in found] == ["text of seed 7", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("broken", {}, "broken raised RuntimeError: no text for seed 1"),
        ("absent", {}, "has no attribute 'absent'"),
        ("numbered", {"most": 3}, "unexpected keyword argument 'most'"),
    ],
)
def test_a_function_that_fails_is_named(function: str, arguments: dict[str, Any], said: str) -> None:
    own = Source(kind="function", function=f"{__name__}:{function}", arguments=arguments)
    with pytest.raises(UserError, match=said):
        list(read_split(plan_splits([own], 1)[0]))


def hangs(seed: int) -> Iterator[str]:
    yield "one text"
    time.sleep(60)


def test_a_function_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCE_SECONDS", 0.05)
    own = Source(kind="function", function=f"{__name__}:hangs")
    with pytest.raises(UserError, match=r"hangs took longer than 0.05 s$"):
        list(read_split(plan_splits([own], 1)[0]))


def test_half_of_a_surrogate_pair_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "whole"}\n{"text": "a \\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n')
    texts, (bad,) = read(path)
    assert texts == ["whole", "\N{GRINNING FACE}"]
    assert (bad.offset, bad.excerpt) == (18, "\\ud83d b")
    assert "has half of a surrogate pair ('\\ud83d')" in bad.reason
