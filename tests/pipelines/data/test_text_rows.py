from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cluster.errors import UserError
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.data.text_rows import add_text_rows

CONTEXT = 4


def shard(path: Path, tokens: list[list[int]], mask: bool) -> Path:
    """Writes rows of which the last position is padding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [[*([0] * (CONTEXT - 1)), PAD_DOCUMENT_ID]] * len(tokens)
    columns: dict[str, pa.Array] = {
        "row_id": pa.array(range(len(tokens)), pa.int64()),
        "input_ids": pa.array(list(np.array(tokens, np.int32))),
        "document_ids": pa.array(list(np.array(documents, np.int32))),
    }
    if mask:
        columns["loss_mask"] = pa.array([[False, True, True, False]] * len(tokens))
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    chats = shard(tmp_path / "chats" / "shard-00000.parquet", [[row] * CONTEXT for row in range(6)], mask=True)
    for number, first in enumerate((100, 200)):
        text = [[first + row] * CONTEXT for row in range(5)]
        shard(tmp_path / "text" / f"shard-0000{number}.parquet", text, mask=False)
    return chats, tmp_path / "text"


def test_text_of_all_shards_gets_its_share_and_counts_whole(folders: tuple[Path, Path]) -> None:
    chats, text = folders
    before = parquet.read_table(chats)
    assert add_text_rows(chats, text, 0.4, 1) == 4
    table = parquet.read_table(chats)
    assert table.slice(0, 6).equals(before)
    rows = table.slice(6).to_pylist()
    assert [row["row_id"] for row in rows] == [6, 7, 8, 9]
    assert len({row["input_ids"][0] for row in rows}) == 4
    assert {row["input_ids"][0] // 100 for row in rows} == {1, 2}
    assert all(row["loss_mask"] == [True, True, True, False] for row in rows)


def test_the_seed_decides_the_rows_and_no_row_comes_twice(folders: tuple[Path, Path], tmp_path: Path) -> None:
    chats, text = folders
    content = chats.read_bytes()
    found = []
    for seed in (1, 1, 2):
        chats.write_bytes(content)
        assert add_text_rows(chats, text, 0.9, seed) == 10
        chats.write_bytes(content)
        add_text_rows(chats, text, 0.25, seed)
        found.append(parquet.read_table(chats)["input_ids"].to_pylist())
    assert found[0] == found[1] != found[2]


def test_a_corpus_without_shards_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no Parquet shards"):
        add_text_rows(folders[0], tmp_path / "empty", 0.5, 1)
