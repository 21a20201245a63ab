"""Tables of rankings: earlier versions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from pipelines.data.preferences import rankings


def test_tables_of_earlier_versions_are_read_without_their_identical_answers(tmp_path: Path) -> None:
    old = {
        "prompt_id": "p",
        "kind": None,
        "prompt_token_ids": [1],
        "answers": [[5, 2], [6, 2], [5, 2], [7, 7]],
        "texts": ["a", "b", "a", "a"],
        "ranks": [1, 2, 3, 3],
        "grades": [4, 2, 4, 1],
        "annotator": "code (x:y)",
        "split": "train",
        "ranking_id": 1,
    }
    same = old | {"answers": [[5, 2]] * 4, "texts": ["a"] * 4, "split": "held_out"}
    table = pa.Table.from_pylist([old, same], schema=pa.schema(list(rankings.SCHEMA)[:-3]).remove(5))
    assert "samples" not in table.column_names
    parquet.write_table(table, tmp_path / "rankings.parquet")
    (row,) = rankings.read_rankings(tmp_path / "rankings.parquet")
    # A cut answer is another answer to a function, which sees that it was cut. The mean of 1 and 3 ties with 2.
    assert (row["answers"], row["ranks"]) == ([[5, 2], [6, 2], [7, 7]], [1, 1, 2])
    assert (row["grades"], row["samples"]) == ([4, 2, 1], [2, 1, 1])
    assert rankings.merge_identical(row) == row
    assert rankings.read_rankings(tmp_path / "rankings.parquet", "held_out") == []
