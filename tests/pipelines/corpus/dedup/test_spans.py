"""Spans of three sentences that a corpus repeats stay in one place only."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from pipelines.corpus.clean.sentences import sentences
from pipelines.corpus.dedup.span_stage import span_groups
from pipelines.corpus.dedup.spans import (
    MARK_BITS,
    MergeSpansPhase,
    RemoveSpansPhase,
    RepeatedSpansPhase,
    SpanPhase,
    without_spans,
)
from pipelines.corpus.tables import EXCLUDED, PREPARED, Part, save_array
from tests.pipelines.corpus.stage_runs import build, make_recipe


def write(folder: Path, parts: list[list[str]], keep: tuple[int, ...] = ()) -> list[Part]:
    """Writes prepared parts; those in `keep` are exempt from near-deduplication."""
    written = []
    for number, texts in enumerate(parts):
        data = [text.encode() for text in texts]
        columns = [
            [f"{number}:{row}" for row in range(len(texts))],
            ["s"] * len(texts),
            texts,
            [*map(len, data)],
            [*map(xxhash.xxh3_128_digest, data)],
            [0.5] * len(texts),
        ]
        path = folder / "prepared" / f"part-{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, PREPARED, strict=True)], schema=PREPARED
            ),
            path,
        )
        written.append(Part(path, "", "s", number not in keep))
    return written


def removed(folder: Path, parts: list[Part], ranges: int = 1, merged: bool = False) -> tuple[list[list[str]], list]:
    """Runs the phases task by task; returns the texts left in each part, and the reports."""
    hashing = SpanPhase(tuple(parts), folder / "spans")
    counts = [hashing.only(index)(0)["spans"] for index in range(len(parts))]
    sizes = [pq.read_metadata(part.file).num_rows for part in parts]
    starts = np.cumsum([0, *sizes]).tolist()
    folders, firsts = tuple(map(hashing.output, range(len(parts)))), tuple(starts[:-1])
    if merged:
        half = len(parts) // 2
        groups = (tuple(range(half)), tuple(range(half, len(parts))))
        merging = MergeSpansPhase(
            tuple(tuple(folders[part] for part in group) for group in groups),
            tuple(tuple(starts[part] - starts[group[0]] for part in group) for group in groups),
            (folder / "merged" / "0", folder / "merged" / "1"),
        )
        for index in range(2):
            merging.only(index)(0)
        folders, firsts = merging.outputs, (0, starts[half])
    finding = RepeatedSpansPhase(folders, firsts, ranges, folder / f"repeated-{ranges}")
    for index in range(ranges):
        finding(index)
    marks = np.sort(np.concatenate([np.load(finding.output(index)) for index in range(ranges)]))
    bounds = np.searchsorted(marks, np.array(starts, np.uint64) << np.uint64(MARK_BITS))
    removing = RemoveSpansPhase(
        tuple(parts),
        tuple(starts),
        save_array(folder / "marks.npy", marks),
        tuple(bounds.tolist()),
        3,
        folder / "left",
        folder / "excluded",
    )
    reports = [removing.only(index)(0) for index in range(len(parts))]
    assert sum(counts) >= len(marks)
    return [pq.read_table(removing.output(index))["text"].to_pylist() for index in range(len(parts))], reports


A, B, C, D, E, F = (f"The {name} is not at all like the others." for name in ("ant", "bee", "cat", "dog", "elk", "fox"))
SHOUTED = f"{A.upper()}  {B}\n{C}"


def test_all_but_the_first_of_a_span_are_removed(tmp_path: Path) -> None:
    parts = [
        [f"{A} {B} {C}\n{D}", f"{D} {E} {F}"],
        [f"{F} {E} {D}\n{SHOUTED}\n{E} One more here.", f"{SHOUTED} {D}", f"{A} {B} {D}"],
    ]
    for ranges, merged in ((1, False), (5, False), (3, True)):
        left, reports = removed(tmp_path, write(tmp_path, parts), ranges, merged)
        # Of the document with all of D, A, B, C and E, one span of three is repeated; two sentences are no span.
        assert left == [parts[0], [f"{F} {E} {D}\n{E} One more here.", f"{A} {B} {D}"]]
        assert [report["sentences"] for report in reports] == [0, 3 + 4]
        assert [report["dropped"] for report in reports] == [0, 1]
        assert reports[1]["example"] == {"id": "1:1", "text": parts[1][1]}
        table = pq.read_table(tmp_path / "left" / "part-00001.parquet")
        texts = [text.encode() for text in left[1]]
        assert table["bytes"].to_pylist() == [*map(len, texts)]
        assert table["digest"].to_pylist() == [*map(xxhash.xxh3_128_digest, texts)]
        assert table["id"].to_pylist() == ["1:0", "1:2"]
        assert table["quality"].to_pylist() == [1.0, 0.5]
        gone = pq.read_table(tmp_path / "excluded" / "part-00001-repeated.parquet", schema=EXCLUDED).to_pylist()
        assert gone == [{"id": "1:1", "source": "s", "reason": "c4: repeated sentences", "text": parts[1][1]}]


def test_sources_that_keep_near_duplicates_are_left_as_they_are(tmp_path: Path) -> None:
    parts = [[f"{A} {B} {C}"], [f"{A} {B} {C}"], [f"{A} {B} {C}"]]
    left, _ = removed(tmp_path, write(tmp_path, parts, keep=(0, 2)))
    assert left == parts


def test_a_repeated_span_stays_whole_in_one_place(tmp_path: Path) -> None:
    """In documents of few different sentences, where spans overlap: no repeated span is lost."""
    draw = random.Random(4)
    named = [f"Sentence {number} of the story has these words." for number in range(12)]
    parts = [[" ".join(draw.choices(named, k=draw.randint(1, 14))) for _ in range(20)] for _ in range(6)]

    def spans(texts: list[list[str]]) -> list[tuple[str, ...]]:
        pieces = [[piece.strip() for piece in sentences(text)] for part in texts for text in part]
        return [tuple(own[at : at + 3]) for own in pieces for at in range(len(own) - 2)]

    before = spans(parts)
    left, reports = removed(tmp_path, write(tmp_path, parts), 4)
    after = spans(left)
    assert {span for span, count in Counter(before).items() if count > 1} <= set(after)
    assert len(after) < len(before)
    assert sum(report["sentences"] for report in reports) > 100
    assert removed(tmp_path, write(tmp_path, parts), 2, merged=True) == (left, reports)


def test_sentences_join_to_the_text() -> None:
    text = 'One is 3.5 long. "Two?" she said!\n\n  a line without a mark\nThree… 四。五。\n'
    assert "".join(sentences(text)) == text
    assert [piece.strip() for piece in sentences(text)] == [
        "One is 3.5 long.",
        '"Two?"',
        "she said!",
        "a line without a mark",
        "Three… 四。",
        "五。",
    ]
    assert sentences("") == []
    assert without_spans(text, np.empty(0, np.uint64))[1] == 0


def test_parts_are_grouped_by_their_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.corpus.dedup.span_stage.SPANS_AT_ONCE", 10)
    assert span_groups([4, 6, 1, 20, 0, 9, 1]) == [[0, 1], [2], [3], [4, 5, 6]]


@pytest.mark.slow
def test_c4_removes_repeated_spans_from_a_corpus(ray_session: None, tmp_path: Path) -> None:
    draw = random.Random(2)
    tales = [" ".join(f"Tale {number} has {draw.random()} and some words." for _ in range(6)) for number in range(20)]
    shared = f"{A} {B} {C}"
    (tmp_path / "a.txt").write_text("\n".join(f"{tale} {shared}" for tale in tales))
    source = {"kind": "files", "path": str(tmp_path / "a.txt"), "text_lines": True}
    stats = build(make_recipe(source, rules={"c4": {}}), tmp_path / "run" / "corpus")
    assert stats["repeated_sentences"] == stats["sources"][str(tmp_path / "a.txt")]["repeated_sentences"] == 19 * 3
    files = sorted((tmp_path / "run" / "corpus" / "documents").glob("*.parquet"))
    texts = pa.concat_tables([pq.read_table(file) for file in files])["text"].to_pylist()
    assert sorted(texts) == sorted([f"{tales[0]} {shared}", *tales[1:]])
    assert stats["kept"]["bytes"] == sum(map(len, texts))
    loose = build(make_recipe(source, rules={"c4": {"repeated_spans": False}}), tmp_path / "other" / "corpus")
    assert loose["repeated_sentences"] == 0
