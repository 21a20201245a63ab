from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from actors.trainer.data import shards_in
from pipelines.corpus.tokens.pack import PAD_DOCUMENT_ID
from pipelines.corpus.tokens.shards import write_shard
from pipelines.data.text_rows import TextRowsPhase, chosen_rows, text_row_counts

CONTEXT = 4
COUNTS = (4, 2, 2)


def shard(path: Path, first: int, rows: int, mask: bool) -> Path:
    """Writes rows of which the last position is padding."""
    documents = np.array([[*([0] * (CONTEXT - 1)), PAD_DOCUMENT_ID]] * rows, np.int32)
    ids = np.repeat(np.arange(first, first + rows, dtype=np.int32)[:, None], CONTEXT, 1)
    columns = {"input_ids": ids, "document_ids": documents}
    if mask:
        columns["loss_mask"] = np.array([[False, True, True, False]] * rows)
    write_shard(path, columns)
    return path


@pytest.fixture
def phase(tmp_path: Path) -> TextRowsPhase:
    """Returns three shards of conversations, and two of the corpus with five rows each."""
    chats = tuple(shard(tmp_path / "chats" / f"{rows}.parquet", 0, rows, mask=True) for rows in (6, 3, 3))
    for number, first in enumerate((100, 200)):
        shard(tmp_path / "text" / f"shard-0000{number}.parquet", first, 5, mask=False)
    targets = tuple(tmp_path / "mixed" / f"{number}.parquet" for number in range(3))
    return TextRowsPhase(chats, targets, tuple(shards_in(tmp_path / "text")), tuple(chosen_rows(10, COUNTS, seed=1)))


def mixed(phase: TextRowsPhase) -> list[list[dict]]:
    assert [phase(index)["text_rows"] for index in range(3)] == list(COUNTS)
    return [parquet.read_table(path).to_pylist() for path in phase.targets]


def test_every_shard_gets_its_share_of_text_that_counts_whole(phase: TextRowsPhase) -> None:
    found = mixed(phase)
    for path, rows in zip(phase.shards, found, strict=True):
        before = parquet.read_table(path)
        assert rows[: before.num_rows] == before.to_pylist()
    text = [row for rows, count in zip(found, COUNTS, strict=True) for row in rows[-count:]]
    assert len({row["input_ids"][0] for row in text}) == len(text) == 8
    assert {row["input_ids"][0] // 100 for row in text} == {1, 2}
    assert all(row["loss_mask"] == [True, True, True, False] for row in text)


def test_the_seed_decides_the_rows(phase: TextRowsPhase) -> None:
    first, again = mixed(phase), mixed(phase)
    other = mixed(replace(phase, chosen=tuple(chosen_rows(10, COUNTS, seed=2))))
    assert first == again != other


def test_a_task_is_given_its_own_rows_and_the_shards_that_hold_them(phase: TextRowsPhase) -> None:
    whole = mixed(phase)
    own = [phase.only(index) for index in range(3)]
    for index, part in enumerate(own):
        assert part(0) == {"text_rows": COUNTS[index]}
        assert parquet.read_table(phase.targets[index]).to_pylist() == whole[index]
        assert len(part.shards) == len(part.targets) == len(part.chosen) == 1
    assert [len(part.corpus) for part in own] == [1, 2, 1]
    assert replace(phase, chosen=(np.array([], np.int64),)).only(0).corpus == ()


@pytest.mark.parametrize(
    ("rows", "available", "share", "expected"),
    [
        ([6], 10, 0.4, [4]),
        ([0, 6], 10, 0.4, [0, 4]),
        ([0, 500, 500, 3], 10_000, 0.5, [0, 500, 500, 3]),
        ([0, 6], 2, 0.9, [0, 2]),
        ([3, 3, 3], 10, 0.1, [0, 1, 0]),
        ([0], 5, 0.5, [0]),
    ],
)
def test_text_is_spread_over_the_shards_by_their_rows(
    rows: list[int], available: int, share: float, expected: list[int]
) -> None:
    assert text_row_counts(rows, available, share) == expected
