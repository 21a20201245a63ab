"""Weights by tokens: repeated documents, documents left out, and the shares that result."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from pydantic import ValidationError

from cluster.recipe.corpus import Corpus
from pipelines.corpus.dedup.split import DROPPED, HELD_OUT, TRAIN
from pipelines.corpus.tables import Part
from pipelines.corpus.tokens.mix import MOST_REPEATS, Mixture, mix, plan, repeats
from tests.demo_recipe import COUNTRIES, RANDOM_FACTS


def test_sources_keep_their_tokens_where_weights_are_as_they_are() -> None:
    assert plan({"a": 300, "b": 100}, {"a": 3.0, "b": 1.0}) == {"a": 1.0, "b": 1.0}


def test_a_source_is_repeated_and_another_cut_to_meet_the_weights() -> None:
    # Half of 400 tokens each: 200 of 300, and 100 twice.
    assert plan({"a": 300, "b": 100}, {"a": 1.0, "b": 1.0}) == {"a": pytest.approx(2 / 3), "b": 2.0}
    # Half of all would be 50 times the 10 that there are: 4 times 10 and as many of the other are all that can be.
    assert plan({"a": 990, "b": 10}, {"a": 1.0, "b": 1.0}) == {"a": pytest.approx(40 / 990), "b": MOST_REPEATS}
    # Nothing is left of one: the others share.
    assert plan({"a": 100, "b": 100, "c": 0}, {"a": 1.0, "b": 1.0, "c": 8.0}) == {"a": 1.0, "b": 1.0, "c": 0.0}


def test_documents_are_repeated_by_position_to_the_nearest_token() -> None:
    tokens = np.array([10, 20, 0, 30, 40])
    positions = np.array([0.4, 0.1, 0.0, 0.3, 0.2])
    # In order: 20, 40, 30, 10 tokens of 100.
    for factor, expected in (
        (1.0, [1, 1, 0, 1, 1]),
        (0.6, [0, 1, 0, 0, 1]),
        (0.39, [0, 1, 0, 0, 0]),
        (0.41, [0, 1, 0, 0, 1]),
        (2.94, [2, 3, 0, 3, 3]),
        (0.0, [0, 0, 0, 0, 0]),
    ):
        assert repeats(tokens, positions, factor).tolist() == expected


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Mixture, list[np.ndarray]]:
    """Returns a source of two parts and one of a single part; some of the documents are dropped or held out."""
    rng = np.random.default_rng(4)
    parts, assignments, tokens = [], [], []
    for number, (source, size) in enumerate((("a", 200), ("a", 100), ("b", 150))):
        file, assignment = tmp_path / f"part-{number}.parquet", tmp_path / f"part-{number}.npy"
        digests = [xxhash.xxh3_128_digest(f"{number} {n}".encode()) for n in range(size)]
        pq.write_table(pa.table({"digest": pa.array(digests, pa.binary(16))}), file)
        assigned = rng.choice([DROPPED, TRAIN, HELD_OUT], size, p=[0.1, 0.8, 0.1]).astype(np.uint8)
        np.save(assignment, assigned)
        parts.append(Part(file, str(number), source))
        assignments.append(assignment)
        tokens.append(np.where(assigned == TRAIN, rng.integers(5, 60, size), 0))
    return Mixture(tuple(parts), tuple(assignments)), tokens


def test_token_shares_meet_the_weights(parts: tuple[Mixture, list[np.ndarray]], tmp_path: Path) -> None:
    whole, tokens = parts
    mixed = mix(whole, tokens, {"a": 1.0, "b": 3.0}, 7, tmp_path / "mix")
    trained = {"a": 0, "b": 0}
    held_out = 0
    for part, file in zip(mixed.parts, mixed.assignments, strict=True):
        original = int(part.file.stem.split("-")[1])
        assert part.file.stat().st_ino == whole.parts[original].file.stat().st_ino
        assert part.source == whole.parts[original].source
        assigned = np.load(file)
        trained[part.source] += int(tokens[original][assigned == TRAIN].sum())
        held_out += int((assigned == HELD_OUT).sum())
        assert not (tokens[original][assigned == TRAIN] == 0).any()
    assert held_out == sum(int((np.load(file) == HELD_OUT).sum()) for file in whole.assignments)
    # To the nearest document of 5 to 59 tokens among 14,000.
    assert trained["b"] / sum(trained.values()) == pytest.approx(0.75, abs=0.003)
    assert sum(trained.values()) == pytest.approx(sum(int(count.sum()) for count in tokens), abs=60)
    assert len({part.file.name for part in mixed.parts}) == len(mixed.parts) > 3
    assert mixed.account is not None
    assert {name: of["tokens"] for name, of in mixed.account.items()} == trained
    assert mixed.account["b"]["share_wanted"] == 0.75

    again = mix(whole, tokens, {"a": 1.0, "b": 3.0}, 7, tmp_path / "again")
    assert [np.load(file).tolist() for file in again.assignments] == [
        np.load(file).tolist() for file in mixed.assignments
    ]
    other = mix(whole, tokens, {"a": 1.0, "b": 3.0}, 8, tmp_path / "other")
    assert [np.load(file).tolist() for file in other.assignments] != [
        np.load(file).tolist() for file in mixed.assignments
    ]


def test_every_source_has_a_weight_or_none() -> None:
    Corpus.model_validate({"sources": [COUNTRIES | {"weight": 2.0}, RANDOM_FACTS | {"weight": 1.0}]})
    with pytest.raises(ValidationError, match="give every source a weight, or none"):
        Corpus.model_validate({"sources": [COUNTRIES | {"weight": 2.0}, RANDOM_FACTS]})
