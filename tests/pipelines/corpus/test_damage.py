"""Storage that fails and files that are damaged: all readable records are read, and the others are named."""

import gzip
import json
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import StorageError, UserError
from cluster.recipe.corpus import Source
from cluster.run.storage import remote as storage
from cluster.run.storage.files import open_file
from infra.bench.corpora.faulty_store import serving
from pipelines.corpus.checks import require_readable
from pipelines.corpus.filter.cache import MeasureSettings
from pipelines.corpus.prepare import PreparePhase
from pipelines.corpus.read.records import BadRecord, Document
from pipelines.corpus.read.sources import plan_splits, read_split

LINES = 2000
FAULTS = ("403", "500", "reset", "truncated", "slow")


class Store(ThreadingHTTPServer):
    """Serves the files of a folder, with a fault in every n-th answer.

    Attributes:
        fault_every: n; 0 answers all requests, 1 none.
        faults: how many there were.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.fault_every, self.answers, self.faults = folder, 0, 0, 0
        self.rng, self.guard = random.Random(5), threading.Lock()

    def fault(self) -> str | None:
        with self.guard:
            self.answers += 1
            if not self.fault_every or self.answers % self.fault_every:
                return None
            self.faults += 1
            return self.rng.choice(FAULTS)

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing about connections that it breaks itself."""


class Handler(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.server.folder / self.path.strip("/")
        fault = self.server.fault()
        if fault in ("403", "500"):
            self.send_error(int(fault))
            return
        if fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "slow":
            threading.Event().wait(0.05)
        whole = path.read_bytes()
        found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(found[1]), min(int(found[2]) + 1, len(whole))) if found else (0, len(whole))
        body = whole[start:end]
        if fault == "truncated" and with_body:
            # An answer that ends as it says, before what was asked for.
            body = body[: len(body) // 2]
        self.send_response(206 if found else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if found:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(whole)}")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(storage, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr("cluster.run.storage.files._REMOTE_BUFFER", 8 << 10)
    # Its default of 5 MB reads all files here at once.
    monkeypatch.setitem(fsspec.config.conf, "http", {"block_size": 8 << 10})
    (tmp_path / "files").mkdir()
    server = Store(tmp_path / "files")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def texts() -> list[str]:
    rng = random.Random(1)
    return [f"{number} {rng.random()} {rng.random()}" for number in range(LINES)]


def lines(given: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in given).encode()


def items(path: Path | str, **settings: object) -> list[Document | BadRecord]:
    source = Source.model_validate({"kind": "files", "path": str(path), **settings})
    return [item for split in plan_splits([source], 1) for item in read_split(split)]


def read(path: Path | str, **settings: object) -> tuple[list[str], list[BadRecord]]:
    found = items(path, **settings)
    return [one.text for one in found if isinstance(one, Document)], [
        one for one in found if isinstance(one, BadRecord)
    ]


def wet(given: list[str]) -> bytes:
    """Returns a WET file, whose records are texts already."""
    records = []
    for text in given:
        head = (
            "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:0>\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        records.append(f"{head}{text}\r\n\r\n".encode())
    return b"".join(map(gzip.compress, records))


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    "a.jsonl": lines,
    "a.jsonl.gz": lambda given: gzip.compress(lines(given)),
    "a.jsonl.zst": lambda given: pa.compress(lines(given), codec="zstd", asbytes=True),
    "a.json": lambda given: json.dumps([{"text": text} for text in given], indent=1).encode(),
    "a.csv": lambda given: "\n".join(["text", *given]).encode(),
    "a.tsv.gz": lambda given: gzip.compress("\n".join(["text", *given]).encode()),
    "a.html": lambda given: f"<p>{'</p><p>'.join(given)}</p>".encode(),
    "a.txt": lambda given: "\n".join(given).encode(),
    "a.txt.zst": lambda given: pa.compress("\n".join(given).encode(), codec="zstd", asbytes=True),
    "a.warc.wet.gz": wet,
}


@pytest.mark.parametrize("name", [*FORMATS, "a.parquet"])
def test_a_storage_that_fails_now_and_then_gives_every_record(store: Store, name: str) -> None:
    given = texts()[:800]
    path = store.folder / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": given}), path, row_group_size=100, compression="none")
    else:
        path.write_bytes(FORMATS[name](given))
    # Some formats take few requests.
    store.fault_every = 5 if path.stat().st_size > 60_000 else 3
    settings = {"text_lines": True} if ".txt" in name else {}
    found, bad = read(f"http://127.0.0.1:{store.server_port}/{name}", **settings)
    assert not bad
    assert found == (["\n\n".join(given)] if name == "a.html" else given)
    assert store.faults


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.warc.gz", "a.txt"])
def test_a_storage_that_stops_answering_is_not_taken_for_damage(store: Store, name: str) -> None:
    given = texts()
    data = lines(given * 5)
    if name == "a.parquet":
        pq.write_table(pa.table({"text": given}), store.folder / name, row_group_size=100, compression="none")
    else:
        packed = {"gz": gzip.compress, "zst": lambda whole: pa.compress(whole, codec="zstd", asbytes=True)}
        (store.folder / name).write_bytes(packed.get(name.rpartition(".")[2], bytes)(data))
    url = f"http://user:secret@127.0.0.1:{store.server_port}/{name}"
    (split,) = plan_splits([Source(kind="files", path=url)], 1)
    found = read_split(split)
    if name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert isinstance(next(found), Document)
    store.fault_every, store.rng = 1, type("Always", (), {"choice": staticmethod(lambda _: "403")})()
    with pytest.raises(StorageError, match=r"403.*tried 5 times; the same command reads it again") as raised:
        deque(found, maxlen=0)
    assert "secret" not in str(raised.value)


def test_an_answer_of_s3_that_is_shorter_than_asked_for_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the data end with a byte that the reader sets to notice it."""
    monkeypatch.setattr(storage, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr("cluster.run.storage.files._REMOTE_BUFFER", 8 << 10)
    data = random.Random(3).randbytes(8 << 10)
    whole = data[:-1] + b"\xff" + data[:-1] + b"\xfe" + data * 5
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a.bin").write_bytes(whole)
    with serving(tmp_path, seed=1, slow=0.0) as server:
        server.kinds, server.every = ("truncated",), 3
        with open_file(server.s3("bucket/a.bin")) as file:
            assert file.read() == whole
            assert server.faults["truncated"] > 2
            server.every = 1
            file.seek(100)
            with pytest.raises(StorageError, match="is shorter than the 8,192 bytes asked for"):
                file.read(10)


def test_members_of_a_gzip_file_behind_damage_are_read(tmp_path: Path) -> None:
    given = texts()
    members = [gzip.compress(lines(given[start : start + 500])) for start in range(0, LINES, 500)]
    path = tmp_path / "a.jsonl.gz"
    whole = bytearray(b"".join(members))
    middle = len(members[0]) + len(members[1]) // 2
    whole[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(whole)
    found, (bad,) = read(path)
    assert found[:500] == given[:500]
    assert found[-1000:] == given[-1000:]
    assert given[: len(found) - 1000] == found[:-1000]
    assert 500 < len(found) - 1000 < 1000
    left = len(members[1]) // 2
    assert 0.7 * left < bad.unread_bytes < 1.3 * left + (8 << 10)
    assert bad.file_bytes == path.stat().st_size
    assert f"{bad.unread_bytes:,} of its {bad.file_bytes:,} bytes are not read" in bad.reason
    identifiers = [item.id for item in items(path) if isinstance(item, Document)]
    assert len(set(identifiers)) == len(identifiers)


def test_a_parquet_value_that_is_no_utf8_is_one_bad_record(tmp_path: Path) -> None:
    values = [f"row {number}".encode() for number in range(2500)]
    values[1200] = b"row \xff\xfe"
    text = pa.array(values, pa.binary()).view(pa.string())
    for row_group in (2500, 100):
        pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet", row_group_size=row_group)
        found, (bad,) = read(tmp_path / "a.parquet")
        assert found == [f"row {number}" for number in range(2500) if number != 1200]
        assert "row 1201: 'text' is not utf-8 at byte 4" in bad.reason
        assert bad.unread_bytes == 0


def test_row_groups_behind_a_damaged_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    given = texts()
    pq.write_table(pa.table({"text": given}), path, row_group_size=500, compression="zstd", use_dictionary=False)
    place = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    whole = bytearray(path.read_bytes())
    whole[place : place + 3000] = b"\xff" * 3000
    path.write_bytes(whole)
    found, (bad,) = read(path)
    assert found == given[:500] + given[1000:]
    assert "in rows 501 to 1,000" in bad.reason
    assert bad.unread_bytes == pytest.approx(path.stat().st_size / 4, rel=0.2)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_cut_short_is_no_single_bad_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts()}), path)
        whole = path.read_bytes()
    else:
        pack = gzip.compress if name.endswith("gz") else lambda data: pa.compress(data, codec="zstd", asbytes=True)
        whole = pack(lines(texts()))
    path.write_bytes(whole[: len(whole) // 4])
    (tmp_path / "b.txt").write_text("a whole file")
    splits = tuple(plan_splits([Source(kind="files", path=str(tmp_path))], 1))
    phase = PreparePhase(splits, tmp_path / "out", tmp_path / "out", 1, MeasureSettings())
    report = phase(0)
    assert report["bad"] == 1
    assert [item["file"] for item in report["unread"]] == [str(path)]
    there = path.stat().st_size + len("a whole file")
    with pytest.raises(UserError, match=rf"{path} is damaged .*\({path.stat().st_size:,} of {there:,} bytes of this"):
        require_readable([report], 0.01)
    require_readable([report], 1.0)
