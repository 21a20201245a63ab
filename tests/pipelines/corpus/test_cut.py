"""Large files that are read from their start: cut into pieces, they give the same documents, and a task goes on."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.errors import StorageError
from cluster.recipe.corpus import Source
from pipelines.corpus.cut import CutPhase
from pipelines.corpus.read import lines
from pipelines.corpus.read.files import is_read_from_its_start
from pipelines.corpus.read.records import Document
from pipelines.corpus.read.sources import InputSplit, plan_splits, read_split

RECORDS = 1500


def texts() -> list[str]:
    rng = random.Random(2)
    return [f"{number} {rng.random()} ünd {rng.random()}" for number in range(RECORDS)]


def json_lines(given: list[str]) -> bytes:
    rows = [json.dumps({"text": text}) for text in given]
    rows[700] = '{"text": "half of a pair \\ud83d"}'
    rows[800] = "no JSON"
    return "\n".join(rows).encode()


def damaged(given: list[str]) -> bytes:
    members = [gzip.compress(json_lines(given)[start : start + 20_000]) for start in range(0, 100_000, 20_000)]
    whole = bytearray(b"".join(members))
    whole[len(members[0]) + 4000 : len(members[0]) + 4100] = b"\xff" * 100
    return bytes(whole)


def capture(given: list[str]) -> bytes:
    records = []
    for number, text in enumerate(given[:300]):
        page = f"<html><body><p>{text} and some words more of a page that is read.</p></body></html>".encode()
        kind = b"image/png" if number % 50 == 7 else b"text/html; charset=utf-8"
        http = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n" + page
        head = (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{number}\r\n"
            f"WARC-Record-ID: <urn:uuid:{number:032x}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        )
        records.append(gzip.compress(head.encode() + http + b"\r\n\r\n"))
    records[100] = records[100][:50] + b"\xff" * 20 + records[100][70:]
    return b"".join(records)


FILES = {
    "a.jsonl.gz": lambda given: gzip.compress(json_lines(given)),
    "a.jsonl.zst": lambda given: pa.compress(json_lines(given), codec="zstd", asbytes=True),
    "damaged.jsonl.gz": damaged,
    "a.json": lambda given: json.dumps([{"text": text} for text in given]).encode(),
    "a.csv.gz": lambda given: gzip.compress(("text,n\n" + "".join(f'"{text}\n",1\n' for text in given)).encode()),
    "a.warc.gz": capture,
}


def split_of(path: str | Path) -> InputSplit:
    (split,) = plan_splits([Source(kind="files", path=str(path))], 1)
    return split


@pytest.mark.parametrize("name", FILES)
def test_pieces_give_what_the_file_gives(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name](texts()))
    split = split_of(path)
    assert is_read_from_its_start(str(path), text_lines=False)
    whole = list(read_split(split))
    assert sum(isinstance(item, Document) for item in whole) > 200
    phase = CutPhase((split,), tmp_path / "cut", 3000)
    pieces = phase.pieces(0, phase.only(0)(0))
    assert len(pieces) > 4
    assert [item for piece in pieces for item in read_split(piece)] == whole
    assert sum(piece.stored_bytes for piece in pieces) == split.stored_bytes
    assert len({json.dumps(piece.identity(), default=str) for piece in pieces}) == len(pieces)
    # A later attempt, whose last pieces are not there, passes over the records of the others and writes the same bytes.
    before = {file.name: file.read_bytes() for file in sorted((tmp_path / "cut" / split.name).iterdir())}
    for lost in [*before][3:]:
        (tmp_path / "cut" / split.name / lost).unlink()
    phase(0)
    assert {file.name: file.read_bytes() for file in sorted((tmp_path / "cut" / split.name).iterdir())} == before


def test_each_attempt_gets_further_and_parses_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an attempt that ends after 400 records the pieces stay, and the fourth one ends the file."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts()).encode()))
    phase, parsed, pieces = CutPhase((split_of(path),), tmp_path / "cut", 3000), 0, [0]
    parse = lines._parse

    def fails(*arguments: object) -> object:
        nonlocal parsed
        parsed += 1
        if parsed % 400 == 0:
            raise StorageError("cannot read a.jsonl.gz: 403")
        return parse(*arguments)

    monkeypatch.setattr(lines, "_parse", fails)
    for _ in range(3):
        with pytest.raises(StorageError):
            phase(0)
        pieces.append(len(list(phase.output(0).glob("*.parquet"))))
    assert pieces == sorted(set(pieces))
    found = [item for piece in phase.pieces(0, phase(0)) for item in read_split(piece)]
    assert [item.text for item in found if isinstance(item, Document)] == texts()
    assert parsed < RECORDS + 4 * 100


def test_a_file_that_has_changed_is_cut_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    for given in (texts(), texts()[:200]):
        path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in given).encode()))
        phase = CutPhase((split_of(path),), tmp_path / "cut", 3000)
        found = [item for piece in phase.pieces(0, phase(0)) for item in read_split(piece)]
        assert [item.text for item in found if isinstance(item, Document)] == given
