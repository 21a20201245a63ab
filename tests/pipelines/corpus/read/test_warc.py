"""Pages from HTML and WARC files: their main text and encoding, and damaged files."""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.recipe.corpus import Source
from pipelines.corpus.read import warc
from pipelines.corpus.read.extract_worker import main_text
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.files import Reading, read_file
from pipelines.corpus.read.records import BadRecord, Document, Skipped
from pipelines.corpus.read.sources import plan_splits, read_split
from tests.helpers import SHARED

WARC = SHARED / "warc"
HTML = "<html><head><title>t</title></head><body><nav><a href='/'>Home</a></nav><main><p>{}</p></main></body></html>"


def record(
    text: str,
    *,
    kind: str = "response",
    status: str = "200 OK",
    headers: str = "Content-Type: text/html; charset=utf-8",
    wrong_by: int = 0,
    body: bytes | None = None,
) -> bytes:
    page = HTML.format(text).encode() if body is None else body
    http = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + page
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:0>\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Target-URI: http://example.org/\r\nContent-Type: application/http; msgtype={kind}\r\n"
        f"Content-Length: {len(http) + wrong_by}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def write(path: Path, *records: bytes) -> list[int]:
    """Writes a WARC file, each record a gzip member of its own if the name says so; returns where each starts."""
    packed = [gzip.compress(item) if path.name.endswith(".gz") else item for item in records]
    path.write_bytes(b"".join(packed))
    return [sum(map(len, packed[:number])) for number in range(len(packed))]


def read(path: Path) -> tuple[list[str], list[BadRecord]]:
    with Extractor(10) as extract:
        items = [item for _, item in read_file(str(path), Reading("text", False, extract))]
    return [i for i in items if isinstance(i, str)], [i for i in items if isinstance(i, BadRecord)]


def test_the_main_text_of_a_page_is_extracted(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(HTML.format("First.</p><script>x()</script><p>Second."))
    texts, bad = read(tmp_path / "page.html")
    assert [text.split() for text in texts] == [["First.", "Second."]]
    assert not bad


def test_trafilatura_extracts_the_text_if_the_recipe_names_it(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number} says what the café in the old town has on its menu." for number in range(9)]
    menu = "<nav><ul>" + '<li><a href="/more">More of this</a></li>' * 20 + "</ul></nav>"
    body = f"{menu}<article><p>{'</p><p>'.join(paragraphs)}</p></article><footer>All rights reserved</footer>"
    (tmp_path / "page.html").write_bytes(f"<html><meta charset=cp1252><body>{body}</body></html>".encode("cp1252"))
    (split,) = plan_splits([Source(kind="files", path=str(tmp_path / "page.html"))], 1, 10.0, "trafilatura")
    (document,) = read_split(split)
    assert isinstance(document, Document)
    assert document.text.split("\n") == paragraphs


@pytest.mark.parametrize(
    ("page", "charset"),
    [
        ("<p>Grüße, naïve café</p>".encode(), "utf-8"),
        ("<p>Grüße, naïve café</p>".encode("latin-1"), "ISO-8859-1"),
        # HTTP comes before meta, and a byte order mark before both.
        ("<meta charset=utf-8><p>Grüße, naïve café</p>".encode("cp1252"), "windows-1252"),
        ("\ufeff<meta charset=latin1><p>Grüße, naïve café</p>".encode(), "latin1"),
        ("\ufeff<p>Grüße, naïve café</p>".encode("utf-16-le"), "utf-8"),
        ("<meta charset='iso-8859-1'><p>Grüße, naïve café</p>".encode("latin-1"), None),
        ("<meta charset='iso-8859-1'><p>Grüße, naïve café</p>".encode("latin-1"), "no-such-charset"),
        ("<p>Grüße, naïve café</p>".encode(), None),
    ],
)
def test_the_encoding_is_found_as_a_browser_finds_it(page: bytes, charset: str | None) -> None:
    assert main_text(page, charset).strip() == "Grüße, naïve café"


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_only_pages_that_were_found_are_read(tmp_path: Path, name: str) -> None:
    latin = HTML.format("déjà vu").encode("latin-1")
    packed = gzip.compress(HTML.format("packed").encode())
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    write(
        tmp_path / name,
        record("one"),
        record("a request", kind="request"),
        record("gone", status="404 Not Found"),
        record("an image", headers="Content-Type: image/png"),
        record("", headers="Content-Type: text/html; charset=iso-8859-1", body=latin),
        record(
            "",
            headers="Content-Type: text/html\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip",
            body=chunked,
        ),
    )
    texts, bad = read(tmp_path / name)
    assert [text.strip() for text in texts] == ["one", "déjà vu", "packed"]
    assert not bad


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize("wrong_by", [-10, 10, 250, 1_000_000])
def test_a_record_of_the_wrong_length_is_left_out_and_the_rest_is_read(
    tmp_path: Path, name: str, wrong_by: int
) -> None:
    starts = write(tmp_path / name, record("one"), record("two", wrong_by=wrong_by), record("three"), record("four"))
    texts, bad = read(tmp_path / name)
    assert [text.strip() for text in texts] == ["one", "three", "four"]
    assert [(item.file, item.offset) for item in bad] == [(str(tmp_path / name), starts[1])]
    assert f"at byte {starts[1]}: the record" in bad[0].reason


def test_a_cut_or_flipped_file_gives_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    starts = write(path, record("one"), record("two"), record("three"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    texts, bad = read(path)
    assert [text.strip() for text in texts] == ["one", "two"]
    assert [item.offset for item in bad] == [starts[2]]
    middle = (starts[1] + starts[2]) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    texts, bad = read(path)
    assert [text.strip() for text in texts] == ["one", "three"]
    assert [item.offset for item in bad] == [starts[1]]
    path.write_bytes(b"no archive at all " * 50)
    assert read(path)[0] == []
    assert len(read(path)[1]) == 1


def test_a_record_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAXIMUM_RECORD_BYTES", 2000)
    path = tmp_path / "a.warc.gz"
    bomb = record("", headers="Content-Type: text/html\r\nContent-Encoding: gzip", body=gzip.compress(b"x" * 10_000))
    starts = write(path, record("one"), record("x" * 3000), bomb, record("four"))
    texts, bad = read(path)
    assert [text.strip() for text in texts] == ["one", "four"]
    assert [item.offset for item in bad] == starts[1:3]
    (tmp_path / "a.html").write_text("x" * 3000)
    assert "more than 2,000 bytes" in read(tmp_path / "a.html")[1][0].reason


def test_a_page_that_keeps_the_parser_busy_is_left_out(tmp_path: Path) -> None:
    """Time to find the main text grows with the square of the depth: 8,000 elements take 1.2 s, 2,000 take 0.06 s."""
    nested = b"<div>" * 20_000 + b"x"
    starts = write(tmp_path / "a.warc", record("one"), record("", body=nested), record("three"))
    with Extractor(0.5) as extract:
        items = [item for _, item in read_file(str(tmp_path / "a.warc"), Reading("text", False, extract))]
        assert [item.strip() for item in items if isinstance(item, str)] == ["one", "three"]
        (bad,) = [item for item in items if isinstance(item, BadRecord)]
        assert (bad.file, bad.offset) == (str(tmp_path / "a.warc"), starts[1])
        assert "takes more than 0.5 s of processor time to parse" in bad.reason
        # The limit is each page's own: many quick ones may take longer together.
        assert {extract(b"<div>" * 3000 + b"<p>here") for _ in range(4)} == {"here"}


@pytest.mark.skipif(not WARC.exists(), reason="the shared captures are not here")
def test_every_page_of_the_shared_captures_is_read() -> None:
    found = {path.name: read(path) for path in sorted(WARC.glob("*.warc.gz"))}
    assert {name: len(texts) for name, (texts, _) in found.items()} == {
        "sample-0000.warc.gz": 22,
        "sample-0001.warc.gz": 15,
    }
    assert not any(bad for _, bad in found.values())
    assert all(texts for texts, _ in found.values())
    assert not any("\ufffd" in text for texts, _ in found.values() for text in texts)
    assert found["sample-0001.warc.gz"][0][-1].startswith("Frequently asked questions")


PAGE = HTML.format("first").encode()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Type: text/html\r\nContent-Encoding: gzip", PAGE),
        ("Content-Type: text/html\r\nTransfer-Encoding: chunked", PAGE),
        (
            "Content-Type: text/html\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip",
            gzip.compress(PAGE, mtime=0),
        ),
        ("Content-Type: text/html\r\nContent-Encoding: deflate", zlib.compress(PAGE)),
        ("Content-Type: text/html\r\nContent-Encoding: deflate", zlib.compress(PAGE, wbits=-15)),
        (
            "Content-Type: text/html\r\nContent-Encoding: x-gzip",
            gzip.compress(PAGE[:99], mtime=0) + gzip.compress(PAGE[99:], mtime=0),
        ),
        (
            "Content-Type: text/html\r\nContent-Encoding: gzip, br",
            pa.compress(gzip.compress(PAGE, mtime=0), "brotli", True),
        ),
        ("Content-Type: text/html\r\nContent-Encoding: zstd", pa.compress(PAGE, "zstd", True)),
        *((f"Content-Type: text/html\r\nContent-Encoding: {name}", PAGE) for name in ("utf-8", "none", "binary", "br")),
        ("Content-Type: text/html\r\nContent-Encoding: br", b"<?xml version='1.0'?>" + PAGE),
        ("Content-Type: TEXT/HTML;Charset=UTF-8", PAGE),
        ("Server: x", b"\n <!doctype html>" + PAGE),
        ("Content-Type: unknown/unknown", PAGE),
        ("Content-Type: text/html;\r\n charset=utf-8", PAGE),
    ],
)
@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_what_headers_say_wrongly_is_ignored_and_the_next_pages_are_read(
    tmp_path: Path, name: str, headers: str, body: bytes
) -> None:
    write(tmp_path / name, record("", headers=headers, body=body), *map(record, ("two", "three", "four")))
    texts, bad = read(tmp_path / name)
    assert [text.strip() for text in texts] == ["first", "two", "three", "four"]
    assert not bad


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Type: text/html\r\nContent-Encoding: gzip", gzip.compress(PAGE, mtime=0)[:-9]),
        ("Content-Type: text/html\r\nContent-Encoding: deflate", b"\x01\x02\x03"),
        ("Content-Type: text/html\r\nTransfer-Encoding: chunked", b"5\r\n<p>on\r\nfff\r\ne"),
    ],
)
def test_a_page_that_is_damaged_is_a_bad_record_of_its_own(tmp_path: Path, headers: str, body: bytes) -> None:
    starts = write(tmp_path / "a.warc", record("one"), record("", headers=headers, body=body), record("three"))
    texts, (bad,) = read(tmp_path / "a.warc")
    assert [text.strip() for text in texts] == ["one", "three"]
    assert "cannot be decoded" in bad.reason
    assert (bad.offset, bad.unread_bytes) == (starts[1], 0)


def test_headers_may_end_with_bare_line_feeds(tmp_path: Path) -> None:
    parts = [record(text).split(b"\r\n\r\n", 2) for text in ("one", "two")]
    bare = []
    for warc_head, http_head, body in parts:
        message = http_head.replace(b"\r\n", b"\n") + b"\n\n" + body.removesuffix(b"\r\n\r\n")
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(message), warc_head)
        bare.append(head + b"\r\n\r\n" + message + b"\r\n\r\n")
    write(tmp_path / "a.warc.gz", *bare)
    texts, bad = read(tmp_path / "a.warc.gz")
    assert [text.strip() for text in texts] == ["one", "two"]
    assert not bad


def test_responses_that_are_no_page_are_counted_by_kind(tmp_path: Path) -> None:
    write(
        tmp_path / "a.warc",
        record("a request", kind="request"),
        *[record("gone", status="404 Not Found")] * 2,
        record("an image", headers="Content-Type: Image/PNG"),
        record("", headers="Server: x", body=b"\x89PNG <p>"),
    )
    with Extractor(10) as extract:
        items = [item for _, item in read_file(str(tmp_path / "a.warc"), Reading("text", False, extract))]
    found = Counter(item.kind for item in items if isinstance(item, Skipped))
    assert found == {"status 404": 2, "content type image/png": 1, "another content type": 1}
    assert len(items) == 4


def test_records_of_every_type_are_read_or_counted(tmp_path: Path) -> None:
    http = b"Content-Type: application/http; msgtype=response\r\n"
    resource = record("")
    page = HTML.format("a resource").encode()
    head = resource[: resource.index(b"\r\n\r\n")].replace(b"WARC-Type: response", b"WARC-Type: resource")
    head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(page), head)
    write(
        tmp_path / "a.warc",
        record("one").replace(http, b"Content-Type: Application/HTTP\r\n"),
        record("two").replace(http, b""),
        head.replace(http.strip(), b"Content-Type: Text/HTML") + b"\r\n\r\n" + page + b"\r\n\r\n",
        head.replace(http.strip(), b"Content-Type: text/dns") + b"\r\n\r\n" + page + b"\r\n\r\n",
        *[record("seen before", kind="revisit")] * 2,
        record("a part", kind="continuation"),
        record("asked", kind="request"),
        record("about", kind="metadata"),
    )
    with Extractor(10) as extract:
        items = [item for _, item in read_file(str(tmp_path / "a.warc"), Reading("text", False, extract))]
    assert [item.strip() for item in items if isinstance(item, str)] == ["one", "two", "a resource"]
    assert Counter(item.kind for item in items if isinstance(item, Skipped)) == {
        "content type text/dns": 1,
        "record of type revisit": 2,
        "record of type continuation": 1,
    }


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: pa.compress(data, "zstd", True)])
def test_extracted_texts_of_a_wet_file_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    texts = ["Grüße aus dem Archiv", "second"]
    records = []
    for text in texts:
        data = text.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        records.append(pack(head.encode() + data + b"\r\n\r\n"))
    path = tmp_path / f"a.warc.wet{'' if pack is bytes else '.gz' if pack is gzip.compress else '.zst'}"
    path.write_bytes(b"".join(records))
    assert read(path) == (texts, [])
