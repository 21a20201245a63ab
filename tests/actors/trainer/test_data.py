"""The order in which rows are trained on."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from actors.trainer.data import Shard, row_batches, shards_in
from cluster.errors import UserError


@pytest.mark.parametrize("size", [1, 4, 7, 30])
def test_the_stream_gives_every_row_once_an_epoch_from_any_position(tmp_path: Path, size: int):
    shards = []
    for number, ids in enumerate((range(5), range(5, 12))):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.table({"row_id": list(ids)}), path)
        shards.append(Shard(str(path), len(ids)))

    def read(start: int) -> list[int]:
        batches = list(row_batches(shards, epochs=2, seed=3, start=start, size=size))
        assert {batch.num_rows for batch in batches[:-1]} <= {size}
        assert 0 < batches[-1].num_rows <= size
        return [row for batch in batches for row in batch["row_id"].to_pylist()]

    everything = read(0)
    epochs = [everything[:12], everything[12:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert read(7) == everything[7:]
    assert read(19) == everything[19:]


def test_a_damaged_shard_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no Parquet shards"):
        shards_in(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(UserError, match="damaged"):
        shards_in(tmp_path)
