"""Lists the steps of the corpus stage, each with the bare call of the library that it uses."""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ftfy
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
from fastwarc.warc import ArchiveIterator, WarcRecordType
from rensa import RMinHash

from cluster.personal_data import replace
from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules
from infra.bench.corpora.documents import page
from pipelines.corpus.clean.language import _CHARACTERS, _identifier, identify
from pipelines.corpus.clean.text import clean
from pipelines.corpus.dedup.minhash import PERMUTATIONS, SIGNATURE_SEED, signatures
from pipelines.corpus.filter.rules import bounds, reasons_to_drop
from pipelines.corpus.filter.signals import measure
from pipelines.corpus.read.extract_worker import main_text
from pipelines.corpus.read.extractor import Extractor, PageRequest
from pipelines.corpus.read.files import Reading, read_file
from pipelines.corpus.tables import BATCH
from pipelines.corpus.tokens.encode import as_tiktoken, encode_documents
from pipelines.corpus.tokens.pack import pack
from pipelines.corpus.tokens.train import train_tokenizer

RULES = Rules(gopher_quality=GopherQuality(), gopher_repetition=GopherRepetition(), c4=C4(), fineweb=FineWeb())
VOCABULARY, CONTEXT = 8192, 1024
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Step:
    """A step of the stage, the call of its library alone on the same input, and the bytes of that input."""

    name: str
    stage: Callable[[], object]
    size: int
    library: str = ""
    bare: Callable[[], object] | None = None


class _NoExtractor(Extractor):
    """Returns an empty text for every page, to measure the reading of captures without it."""

    def request(self, page: bytes, charset: str | None = None) -> PageRequest:
        del page  # an answered request keeps no page
        return PageRequest(self, b"", (charset or "").encode(), main_text="")


def steps(folder: Path, texts: Sequence[str]) -> Iterator[Step]:
    """Yields every step in the order of the stage; writes the files to read to `folder`."""
    yield from _reading(folder, texts)
    yield from _cleaning(texts)
    yield from _tokens(folder, texts)


def _reading(folder: Path, texts: Sequence[str]) -> Iterator[Step]:
    size = sum(len(text.encode()) for text in texts)
    lines = "".join(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts).encode()
    plain, packed, table = folder / "a.jsonl", folder / "a.jsonl.gz", folder / "a.parquet"
    plain.write_bytes(lines)
    packed.write_bytes(gzip.compress(lines, 6))
    pq.write_table(pa.table({"text": list(texts)}), table, row_group_size=BATCH)
    with Extractor(10) as extract:
        reading = Reading("text", False, extract)
        yield Step("read .jsonl", lambda: _drain(plain, reading), size, "json", lambda: _json(plain))
        yield Step("read .jsonl.gz", lambda: _drain(packed, reading), size, "gzip, json", lambda: _json(packed))
        yield Step("read .parquet", lambda: _drain(table, reading), size, "pyarrow", lambda: _rows(table))
    pages = [page(text) for text in texts]
    captures = folder / "a.warc.gz"
    captures.write_bytes(b"".join(gzip.compress(capture(number, body)) for number, body in enumerate(pages)))
    size = sum(map(len, pages))
    yield Step(
        "read .warc.gz",
        lambda: _drain(captures, Reading("text", False, _NoExtractor(10))),
        size,
        "fastwarc",
        lambda: _captures(captures),
    )
    with Extractor(10) as extract:
        extract(pages[0])
        yield Step(
            "extract",
            lambda: [request.text() for request in list(map(extract.request, pages))],
            size,
            "resiliparse",
            lambda: list(map(main_text, pages)),
        )


def _cleaning(texts: Sequence[str]) -> Iterator[Step]:
    size = sum(len(text.encode()) for text in texts)
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    yield Step("clean", lambda: list(map(clean, texts)), size, "ftfy", lambda: list(map(ftfy.fix_text, texts)))
    starts, classify = [text[:_CHARACTERS] for text in texts], _identifier().classify
    library = "py3langid, the same characters"
    yield Step("identify languages", lambda: identify(texts), size, library, lambda: list(map(classify, starts)))
    kinds = ("email", "phone", "ip", "card", "iban")
    yield Step("replace personal data", lambda: [replace(text, kinds) for text in texts], size)
    rules = bounds(RULES, 5, None)
    yield Step("measure and judge", lambda: [reasons_to_drop(measure(some, RULES)[1], rules) for some in batches], size)
    yield Step("sign", lambda: signatures(list(texts)), size, "rensa on 5-grams of words", lambda: _sign(texts))


def _tokens(folder: Path, texts: Sequence[str]) -> Iterator[Step]:
    size = sum(len(text.encode()) for text in texts)
    yield Step("train the tokenizer", lambda: train_tokenizer(texts, VOCABULARY), size)
    tokenizer, file = train_tokenizer(texts, VOCABULARY), folder / "tokenizer.json"
    tokenizer.save(str(file))
    fast = as_tiktoken(tokenizer)
    assert isinstance(fast, tiktoken.Encoding)
    ids = encode_documents(file, texts)
    for library, encode in (("tiktoken", fast.encode_ordinary), ("tokenizers", tokenizer.encode)):
        yield Step("encode", lambda: encode_documents(file, texts), size, library, partial(_each, encode, texts))
    yield Step("pack", lambda: pack(ids, CONTEXT), size)


def _drain(path: Path, reading: Reading) -> int:
    return sum(1 for _ in read_file(str(path), reading))


def _json(path: Path) -> list[str]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return [json.loads(line)["text"] for line in file]


def _rows(path: Path) -> list[list[str]]:
    with pq.ParquetFile(path) as file:
        return [batch.column(0).to_pylist() for batch in file.iter_batches(1000)]


def _each(encode: Callable[[str], object], texts: Sequence[str]) -> None:
    for text in texts:
        encode(text)


def capture(number: int, body: bytes) -> bytes:
    """Renders a web page as a record of a WARC file, without compression."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{number}\r\n"
        f"WARC-Record-ID: <urn:uuid:{number:032x}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def _captures(path: Path) -> int:
    with path.open("rb") as file:
        return sum(len(record.reader.read()) for record in ArchiveIterator(file, record_types=WarcRecordType.response))


def _sign(texts: Sequence[str]) -> object:
    words = [_WORD.findall(text.lower()) for text in texts]
    grams = [[" ".join(some[start : start + 5]) for start in range(max(len(some) - 4, 1))] for some in words]
    return RMinHash.digest_matrix_from_token_sets(grams, PERMUTATIONS, SIGNATURE_SEED).to_rows()
