import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.recipe.collect import ChatSource
from pipelines.data.source_rows import source_rows, source_splits, split_rows

LINES = [
    *(json.dumps({"prompt": "Grüße " * number, "response": "x"}, ensure_ascii=False) for number in range(7)),
    "",
    "{",
    '{"prompt": "a"}\r',
    "\ufeff{}",
    "[1]",
]


def files(folder: Path) -> list[ChatSource]:
    text = "\n".join(LINES)
    for name, content in (
        ("end.jsonl", text + "\n"),
        ("open.jsonl", text),
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8", newline="")
    rows = [{"prompt": str(number)} for number in range(10)]
    (folder / "list.json").write_text(json.dumps(rows))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=3)
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), folder / "none.parquet")
    return [ChatSource(kind="files", path=str(path)) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("size", [1, 40, 100, 1 << 20])
def test_parts_of_a_file_have_its_rows_and_places_once_and_in_order(size: int, tmp_path: Path) -> None:
    for source in files(tmp_path):
        splits = list(source_splits(source, size))
        found = [row for split in splits for row in split_rows(split, 1)]
        assert found == list(source_rows(source, 1)), source.path
        if size == 1 and str(source.path).endswith(("end.jsonl", "rows.parquet")):
            assert len(splits) > 3


def test_no_part_of_lines_is_larger_than_its_size_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(1000)))
    splits = list(source_splits(ChatSource(kind="files", path=str(tmp_path / "a.jsonl")), 100))
    assert all(split.span and 100 <= split.span[1] - split.span[0] <= 100 + 18 for split in splits[:-1])
