"""Files that are cut into parts, kept elsewhere or laid out like datasets: every record is read exactly once."""

import gzip
import json
import random
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.recipe.corpus import Source
from pipelines.corpus.read import sources
from pipelines.corpus.read.records import BadRecord, Document
from pipelines.corpus.read.sources import plan_splits, read_split

LINES = 50
ROWS = 400


def given(path: Path | str, **settings: object) -> Source:
    return Source.model_validate({"kind": "files", "path": str(path), **settings})


def read(source: Source, size: int = 8 << 20) -> tuple[list[Document | BadRecord], int]:
    """Returns all records in order, and the number of splits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SPLIT_BYTES", size)
        splits = plan_splits([source], 1)
        return [item for split in splits for item in read_split(split)], len(splits)


def documents(source: Source) -> list[str]:
    return [item.text for item in read(source)[0] if isinstance(item, Document)]


def lines(rng: random.Random) -> bytes:
    """Returns lines of every length from none up, with and without carriage returns, some broken, the last unended."""
    pieces = []
    for number in range(LINES):
        text = json.dumps({"text": f"{number} {'é' * rng.choice([0, 1, 7, 60])}"}, ensure_ascii=False).encode()
        pieces.append(rng.choice([text, text, b"", b"{broken", text + b"\r"]))
    return b"\n".join(pieces)


@pytest.mark.parametrize("text_lines", [False, True])
def test_however_a_file_of_lines_is_cut_every_line_is_read_once(tmp_path: Path, text_lines: bool) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        path = tmp_path / f"{seed}.{'txt' if text_lines else 'jsonl'}"
        path.write_bytes(lines(rng))
        source = given(path, text_lines=text_lines)
        whole, one = read(source)
        assert one == 1
        assert len(whole) > LINES / 2
        for size in (1, rng.randint(2, 60), rng.randint(60, 900), path.stat().st_size - 1):
            cut, count = read(source, size)
            assert count == -(-path.stat().st_size // size)
            assert [getattr(item, "id", getattr(item, "offset", None)) for item in cut] == [
                getattr(item, "id", getattr(item, "offset", None)) for item in whole
            ]
            assert [item.text for item in cut if isinstance(item, Document)] == [
                item.text for item in whole if isinstance(item, Document)
            ]


def test_a_broken_line_of_a_later_part_is_named_by_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{broken\n')
    (bad,) = [item for item in read(given(tmp_path / "a.jsonl"), 20)[0] if isinstance(item, BadRecord)]
    assert bad.reason.startswith(f"{tmp_path}/a.jsonl byte 32 is not valid JSON")


def test_however_a_parquet_file_is_cut_every_row_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [None if number % 50 == 7 else f"text {number}" for number in range(ROWS)]
    pq.write_table(pa.table({"text": texts, "other": list(range(ROWS))}), path, row_group_size=30)
    whole, one = read(given(path))
    assert one == 1
    assert [item.id for item in whole if isinstance(item, Document)] == [
        f"{path}:a.parquet:{number}" for number, text in enumerate(texts) if text
    ]
    for size, expected in ((1, 14), (1500, None), (path.stat().st_size - 1, None)):
        cut, count = read(given(path), size)
        assert cut == whole
        assert count == expected if expected else 1 < count < 14


def test_files_that_cannot_be_cut_are_read_whole(tmp_path: Path) -> None:
    rng = random.Random(1)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.writelines(json.dumps({"text": f"text {rng.random()}"}).encode() + b"\n" for _ in range(100))
    (tmp_path / "b.txt").write_text("a document\nof two lines")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    (tmp_path / "d.jsonl").write_text('{"text": "cut"}\n' * 3)
    items, count = read(given(tmp_path), 16)
    assert count == 3 + 3
    assert len(items) == 100 + 1 + 1 + 3
    assert read(given(tmp_path, limit=5), 16)[1] == 1


def test_ids_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    ids = [item.id for item in read(given(tmp_path))[0] if isinstance(item, Document)]
    assert ids == [f"{tmp_path}:a/x.txt:0", f"{tmp_path}:b/x.txt:0"]


def test_a_uri_is_read_like_a_path(tmp_path: Path) -> None:
    """A file system in memory, which is reached as s3:// and hf:// are, has files of every kind, some of them cut."""
    rng = random.Random(2)
    (tmp_path / "a.jsonl").write_bytes(lines(rng))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(rng)))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(lines(rng), codec="zstd", asbytes=True))
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(ROWS)]}), tmp_path / "d.parquet", row_group_size=30)
    (tmp_path / "e.html").write_text("<p>a page</p>")
    (tmp_path / "f.html").write_text("")
    system = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        system.pipe(f"/triptych-corpus/{file.name}", file.read_bytes())
    here, there = given(tmp_path), given("memory://triptych-corpus")
    local, count = read(here, 700)
    far, same = read(there, 700)
    assert same == count > 6
    assert read(given(tmp_path.as_uri()), 700)[1] == count
    assert [item.text for item in far if isinstance(item, Document)] == [
        item.text for item in local if isinstance(item, Document)
    ]
    bad = [item for item in far if isinstance(item, BadRecord)]
    assert [item.offset for item in bad] == [item.offset for item in local if isinstance(item, BadRecord)]
    assert {item.file for item in bad} == {
        f"memory://triptych-corpus/{name}" for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "f.html")
    }
    assert not any(str(tmp_path) in item.reason or "/tmp/" in item.reason for item in bad)
    assert documents(given("memory://triptych-corpus/*.html")) == ["a page"]
    with pytest.raises(UserError, match="fix the path"):
        read(given("memory://triptych-corpus/*.txt"))


CARD = """---
license: mit
configs:
- config_name: tales
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: ["data/odd.jsonl"]
- config_name: notes
  default: true
  data_files: notes/**
---
# A dataset
"""


def dataset(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    return folder


def test_the_card_of_a_dataset_selects_the_files_of_a_split(tmp_path: Path) -> None:
    trained = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    folder = dataset(tmp_path, *trained, "data/odd.jsonl", "notes/deep/a.jsonl")
    (folder / "README.md").write_text(CARD)
    assert documents(given(folder, subset="tales", split="train")) == trained
    assert documents(given(folder, subset="tales", split="test")) == ["data/odd.jsonl"]
    assert documents(given(folder, subset="tales")) == ["data/odd.jsonl", *trained]
    assert documents(given(folder, split="train")) == ["notes/deep/a.jsonl"]
    assert len(documents(given(folder))) == 4
    with pytest.raises(UserError, match="no subset 'poems', only tales, notes"):
        read(given(folder, subset="poems"))
    with pytest.raises(UserError, match="no files for split 'test'"):
        read(given(folder, split="test"))


def test_without_a_card_file_names_select_the_split(tmp_path: Path) -> None:
    folder = dataset(tmp_path, "train.jsonl", "dev.jsonl", "eval/x.jsonl", "restrained.jsonl", "en/test-1.jsonl")
    assert documents(given(folder, split="train")) == ["train.jsonl"]
    assert documents(given(folder, split="validation")) == ["dev.jsonl"]
    assert documents(given(folder, split="test")) == ["en/test-1.jsonl", "eval/x.jsonl"]
    assert documents(given(folder, split="test", subset="en")) == ["en/test-1.jsonl"]
    plain = dataset(tmp_path / "plain", "a.jsonl", "b.jsonl")
    assert documents(given(plain, split="train")) == ["a.jsonl", "b.jsonl"]
