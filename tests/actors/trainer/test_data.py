"""The order in which rows are trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from actors.trainer.data import LARGE_SHARD_TOKENS, PARTS, Shard, _own_parts, row_batches, shards_in
from cluster.errors import UserError
from pipelines.corpus.tokens.shards import write_shard


@pytest.mark.parametrize("size", [1, 4, 7, 30])
def test_the_stream_gives_every_row_once_an_epoch_from_any_position(tmp_path: Path, size: int):
    shards = []
    for number, ids in enumerate((range(5), range(5, 12))):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.table({"row_id": list(ids)}), path)
        shards.append(Shard(str(path), len(ids)))

    def read(start: int) -> list[int]:
        batches = list(row_batches(shards, epochs=2, seed=3, start=start, size=size))
        assert {batch.own for batch in batches[:-1]} <= {size}
        assert 0 < batches[-1].own <= size
        return [row for batch in batches for row in batch.rows["row_id"].to_pylist()]

    everything = read(0)
    epochs = [everything[:12], everything[12:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert read(7) == everything[7:]
    assert read(19) == everything[19:]


def large_shard(path: Path, rows: int, first: int) -> None:
    """Writes a shard as the corpus writes large ones, of rows of one length."""
    length = -(-LARGE_SHARD_TOKENS // rows)
    ids = np.repeat(np.arange(first, first + rows, dtype=np.int32)[:, None], length, 1)
    write_shard(path, {"row_id": ids[:, 0], "input_ids": ids})


@pytest.mark.parametrize("workers", [2, 3, 8, 40])
def test_workers_read_their_own_parts_of_the_same_batches(tmp_path: Path, workers: int):
    """The first shard is read whole; of the others a worker reads its own parts, and the few rows behind them."""
    few = np.arange(21, dtype=np.int32)
    write_shard(tmp_path / "0.parquet", {"row_id": few, "input_ids": few[:, None]})
    for number in (1, 2):
        large_shard(tmp_path / f"{number}.parquet", 200, 1000 * number)
    shards = shards_in(tmp_path)
    assert [shard.part_rows for shard in shards] == [0, 3, 3]
    sizes = {"epochs": 2, "seed": 3, "start": 32, "size": 16}
    whole = list(row_batches(shards, **sizes))
    streams = [list(row_batches(shards, **sizes, rank=rank, world_size=workers)) for rank in range(workers)]
    for batches in zip(whole, *streams, strict=True):
        (every, *own), rows = batches, batches[0].rows["row_id"].to_pylist()
        assert {batch.together for batch in batches} == {len(rows)}
        for rank, batch in enumerate(own):
            assert batch.own == len(rows[rank::workers])
            assert batch.rows.num_rows == max(1, batch.own)
            assert batch.rows["row_id"].to_pylist()[: batch.own] == rows[rank::workers]
        assert every.own == every.together
    seen = [row for batch in whole for row in batch.rows["row_id"].to_pylist()]
    assert sorted(seen[-421:]) == sorted([*range(21), *range(1000, 1200), *range(2000, 2200)])
    if 16 % workers == 0:
        for part in _own_parts(shards, **sizes, rank=1, world_size=workers):
            groups = set((part.rows // 3).tolist()) if part.group_rows else set()
            assert len([group for group in groups if group < PARTS]) <= PARTS // workers


def test_a_damaged_shard_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no Parquet shards"):
        shards_in(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(UserError, match="damaged"):
        shards_in(tmp_path)
