"""The first phase, part by part: read, clean, judge, hash and sign every document of a split."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.corpus.clean import clean
from pipelines.corpus.duplicates import SIGNATURE_BYTES, signatures
from pipelines.corpus.parts import written_to_the_side
from pipelines.corpus.rules import reason_to_drop
from pipelines.corpus.sources import Document, Split, read_split

BATCH = 500

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("bytes", pa.int64()),
        ("digest", pa.binary(16)),
        ("signature", pa.binary(SIGNATURE_BYTES)),  # null in a source whose near-duplicates are kept
    ]
)

T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """Writes the documents of split `index` that are worth training on to `folder`."""

    splits: tuple[Split, ...]
    folder: Path
    minimum_words: int

    def __call__(self, index: int) -> dict[str, Any]:
        split = self.splits[index]
        found = {"documents": 0, "bytes": 0}
        kept = {"documents": 0, "bytes": 0}
        dropped: Counter[str] = Counter()
        with (
            written_to_the_side(self.output(split)) as side,
            pq.ParquetWriter(side, SCHEMA, compression="zstd") as writer,
        ):
            for batch in batches(read_split(split), BATCH):
                good: list[Document] = []
                for document in batch:
                    found["documents"] += 1
                    found["bytes"] += len(document.text.encode("utf-8", "surrogatepass"))
                    text = clean(document.text)
                    reason = reason_to_drop(text, self.minimum_words)
                    if reason:
                        dropped[reason] += 1
                    else:
                        good.append(Document(document.id, document.source, text))
                table = _table(good, split.deduplicate)
                writer.write_table(table)
                kept["documents"] += table.num_rows
                kept["bytes"] += sum(table["bytes"].to_pylist())
        return {"source": split.source, "found": found, "kept": kept, "dropped": dict(sorted(dropped.items()))}

    def output(self, split: Split) -> Path:
        return self.folder / f"{split.name}.parquet"


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _table(documents: list[Document], deduplicate: bool) -> pa.Table:
    texts = [document.text for document in documents]
    encoded = [text.encode("utf-8") for text in texts]
    signed = [row.tobytes() for row in signatures(texts)] if deduplicate else [None] * len(texts)
    columns = [
        [document.id for document in documents],
        [document.source for document in documents],
        texts,
        [len(data) for data in encoded],
        [xxhash.xxh3_128_digest(data) for data in encoded],
        signed,
    ]
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
