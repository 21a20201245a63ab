"""Exact and near-duplicates on planted sets, and on two editions of real books."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from cluster.errors import UserError
from cluster.recipe.corpus import KeepPolicy, Source
from pipelines.corpus.clean.text import clean, without_license
from pipelines.corpus.dedup.cluster import (
    EXACT,
    KEPT,
    NEAR,
    PREVIOUS,
    ClusterPhase,
    decide,
)
from pipelines.corpus.dedup.index import Index, IndexPhase, mark_complete, previous_indexes, write_part_index
from pipelines.corpus.dedup.merge import MergePhase, groups, merged_index
from pipelines.corpus.dedup.minhash import (
    PERMUTATIONS,
    least_agreement,
)
from pipelines.corpus.filter.signals import punctuated_lines
from pipelines.corpus.read.records import Document
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.corpus.tables import PREPARED, Part
from tests.helpers import SHARED
from tests.pipelines.corpus.dedup.random_texts import jaccard, random_text


class Corpus:
    """Parts on disk, indexed and clustered as in the stage, task after task in this process."""

    def __init__(self, folder: Path, rows: int = 8) -> None:
        self.folder, self.rows = folder, rows
        self.parts: list[Part] = []
        self.signed: dict[int, np.ndarray] = {}

    def add(self, texts: list[str], source: int = 0, near: bool = True, signed: np.ndarray | None = None) -> None:
        """Adds a part; `signed` takes the place of its texts' own signatures."""
        if signed is not None:
            self.signed[len(self.parts)] = signed
        encoded = [text.encode() for text in texts]
        columns = [
            [f"{len(self.parts)}:{row}" for row in range(len(texts))],
            [str(source)] * len(texts),
            texts,
            [len(data) for data in encoded],
            [xxhash.xxh3_128_digest(data) for data in encoded],
            punctuated_lines(texts).tolist(),
        ]
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, PREPARED, strict=True)], schema=PREPARED
        )
        path = self.folder / "prepared" / f"part-{len(self.parts):05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        self.parts.append(Part(path, "", str(source), near))

    def index(self, left_out: tuple[Path, ...] | None = None) -> list[Path]:
        phase = IndexPhase(tuple(self.parts), left_out, self.folder / "index", self.rows)
        self.counts = [phase(part)["documents"] for part in range(len(self.parts))]
        for part, signed in self.signed.items():
            table, every = pq.read_table(self.parts[part].file), np.arange(len(signed))
            write_part_index(phase.output(part), table, every >= 0, every, signed, self.rows)
        mark_complete(self.folder / "index", self.rows)
        return [phase.output(part) for part in range(len(self.parts))]

    def decisions(
        self,
        policy: KeepPolicy = "longest",
        previous: tuple[str, ...] = (),
        ranges: int = 1,
        similarity: float = 0.8,
        at_once: int = 0,
    ) -> list[tuple[int, int, int]]:
        """Returns (document, representative, status) by document; from merged indexes if `at_once` is set."""
        own = self.index()
        earlier = previous_indexes(previous, self.rows)
        counts = [len(np.load(path / "facts.npy")) for path in earlier]
        sources = (*[-1] * len(earlier), *(int(part.source) for part in self.parts))
        index = Index((*earlier, *own), (*counts, *self.counts), len(earlier), sources)
        if at_once:
            index = self.merge(index, at_once)
        bands, within = PERMUTATIONS // self.rows, policy != "earlier_source"
        pairs = self.folder / f"pairs-{policy}-{ranges}"
        phase = ClusterPhase(index, bands, ranges, least_agreement(similarity), within, pairs)
        for task in range(phase.tasks()):
            phase(task)
        files = [phase.output(task) for task in range(phase.tasks())]
        return [tuple(row) for row in decide(index, files[:ranges], files[ranges:], policy).tolist()]

    def merge(self, index: Index, at_once: int) -> Index:
        grouped = groups(index, at_once)
        outputs = tuple(self.folder / "merged" / f"{number:05d}" for number in range(len(grouped)))
        phase = MergePhase(tuple(tuple(index.folders[part] for part in group) for group in grouped), outputs)
        for number in range(len(grouped)):
            assert phase.only(number)(0) == {"documents": sum(index.counts[part] for part in grouped[number])}
        return merged_index(index, grouped, outputs)


def alike(rng: random.Random, text: list[str], changed: int) -> list[str]:
    return text[:-changed] + random_text(rng, changed)


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(7)
    originals = [random_text(rng, 200) for _ in range(200)]
    # Eight new words at the end: (196 - 8) / (196 + 8) = 0.92. Sixty: (196 - 60) / (196 + 60) = 0.53.
    near = [alike(rng, text, 8) for text in originals[:50]]
    far = [alike(rng, text, 60) for text in originals[50:100]]
    texts = [" ".join(text) for text in [*originals, *near, *far]]
    assert jaccard(texts[0], texts[200]) == pytest.approx(188 / 204)
    assert jaccard(texts[50], texts[250]) == pytest.approx(136 / 256)
    corpus = Corpus(tmp_path)
    for start in range(0, 300, 90):
        corpus.add(texts[start : start + 90])
    expected = [(document, document, KEPT) for document in range(50)]
    expected += [(document, document - 200, NEAR) for document in range(200, 250)]
    assert corpus.decisions() == expected
    assert corpus.decisions(ranges=7) == expected


def test_precision_and_recall_at_a_jaccard_similarity_of_0_8(tmp_path: Path) -> None:
    """600 originals, a duplicate of each at 0.8 to 0.95 and a distractor of each at 0.5 to 0.6."""
    rng = random.Random(13)
    texts = []
    for _ in range(600):
        original = random_text(rng, 200)
        # d new words at the end: (196 - d) / (196 + d).
        texts += [original, alike(rng, original, rng.randint(5, 21)), alike(rng, original, rng.randint(50, 65))]
    joined = [" ".join(text) for text in texts]
    similar = [jaccard(joined[number], joined[number + 1]) for number in range(0, 1800, 3)]
    distant = [jaccard(joined[number], joined[number + 2]) for number in range(0, 1800, 3)]
    assert min(similar) >= 0.8
    assert max(distant) <= 0.6
    corpus = Corpus(tmp_path)
    for start in range(0, 1800, 300):
        corpus.add(joined[start : start + 300])
    found = {(document, representative) for document, representative, status in corpus.decisions() if status != KEPT}
    wanted = {(3 * number, 3 * number + 1) for number in range(600)}
    right = sum((min(pair), max(pair)) in wanted for pair in found)
    assert right / len(found) >= 0.99
    assert right / len(wanted) >= 0.95


@pytest.fixture
def three_of_a_kind() -> list[str]:
    """Returns three texts that are alike, the second the longest, and one by itself."""
    rng = random.Random(3)
    base = random_text(rng, 200)
    return [" ".join(text) for text in (base, base + random_text(rng, 6), base[:-2], random_text(rng, 200))]


def test_the_longest_is_kept_then_the_earliest(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    corpus = Corpus(tmp_path)
    short, longest, shortest, other = three_of_a_kind
    corpus.add([short, longest])
    corpus.add([other, shortest, longest])
    assert corpus.decisions() == [(0, 1, NEAR), (1, 1, KEPT), (3, 1, NEAR), (4, 1, EXACT)]


def test_the_first_source_is_kept(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    corpus = Corpus(tmp_path)
    short, longest, shortest, _ = three_of_a_kind
    corpus.add([shortest, short], source=0)
    corpus.add([longest], source=1)
    assert corpus.decisions("source") == [(0, 1, NEAR), (1, 1, KEPT), (2, 1, NEAR)]


def test_only_what_an_earlier_source_has_is_dropped(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    corpus = Corpus(tmp_path)
    short, longest, shortest, other = three_of_a_kind
    twin = f"{other} and something more"
    corpus.add([short, shortest], source=0)
    corpus.add([other, longest, twin], source=1)
    assert corpus.decisions("earlier_source") == [(0, 0, KEPT), (3, 0, NEAR)]


def test_the_better_text_is_kept(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    corpus = Corpus(tmp_path)
    short, longest, shortest, _ = three_of_a_kind
    corpus.add([short, longest, f"{shortest}."])
    assert corpus.decisions("quality") == [(0, 2, NEAR), (1, 2, NEAR), (2, 2, KEPT)]


def test_clusters_join_through_a_common_neighbor(tmp_path: Path) -> None:
    signed = np.tile(np.arange(PERMUTATIONS, dtype=np.uint32), (3, 1))
    signed[1, 88:] += 1000  # agrees with the first in 88/112 = 0.79
    signed[2, 88:] += 1000
    signed[2, :24] += 2000  # with the second in 0.79, with the first in 0.57
    corpus = Corpus(tmp_path)
    corpus.add(["aaa", "bb", "c"], signed=signed)
    assert corpus.decisions() == [(0, 0, KEPT), (1, 0, NEAR), (2, 0, NEAR)]


def test_exempt_documents_lose_exact_copies_only(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    corpus = Corpus(tmp_path)
    short, longest, _, _ = three_of_a_kind
    corpus.add([short, longest, short], near=False)
    corpus.add([short])
    assert corpus.decisions() == [(0, 0, KEPT), (2, 0, EXACT), (3, 0, EXACT)]


def test_a_later_corpus_drops_duplicates_of_the_first(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    short, longest, shortest, other = three_of_a_kind
    rng = random.Random(8)
    fresh = [" ".join(random_text(rng, 150)) for _ in range(3)]
    first = Corpus(tmp_path / "first")
    first.add([short, other])
    assert first.decisions() == []
    second = Corpus(tmp_path / "second")
    second.add([fresh[0], longest])
    second.add([other, fresh[1], fresh[2], shortest, f"{fresh[1]} more"])
    assert second.decisions(previous=(str(tmp_path / "first"),)) == [
        (3, 0, PREVIOUS),
        (4, 1, PREVIOUS),
        (5, 8, NEAR),
        (7, 0, PREVIOUS),
        (8, 8, KEPT),
    ]


def test_merged_indexes_decide_as_those_of_the_parts(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    """Of previous corpora, several sources, parts that are exempt from near-duplicates or empty."""
    short, longest, shortest, other = three_of_a_kind
    before = Corpus(tmp_path / "before")
    before.add([other])
    before.add([f"{other} and more"])
    before.decisions()
    corpus = Corpus(tmp_path / "after")
    for source, texts in enumerate([[short, other], [], [longest, short], [shortest], [other, longest, "few words"]]):
        corpus.add(texts, source // 2, near=source != 3)
    previous = (str(tmp_path / "before"),)
    for policy in ("source", "earlier_source"):
        expected = corpus.decisions(policy, previous)
        assert len(expected) > 4
        assert corpus.decisions(policy, previous, at_once=2) == expected


def test_parts_are_merged_in_order_by_source_and_size() -> None:
    index = Index(tuple(map(Path, "abcdefg")), (5, 5, 5, 20, 1, 1, 1), 2, (-1, -1, 0, 0, 0, 0, 1))
    assert groups(index, parts=3, documents=10) == [[0, 1], [2], [3], [4, 5], [6]]
    assert groups(index, parts=2, documents=99) == [[0, 1], [2, 3], [4, 5], [6]]
    found = merged_index(index, groups(index, 3, 10), tuple(map(Path, "vwxyz")))
    assert found == Index(tuple(map(Path, "vwxyz")), (10, 5, 20, 2, 1), 1, (-1, 0, 0, 0, 1))
    assert found.first_new == index.first_new


def test_a_previous_corpus_must_have_a_fitting_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no index/index\.json"):
        previous_indexes([str(tmp_path)], 8)
    (tmp_path / "index").mkdir()
    mark_complete(tmp_path / "index", 8)
    assert previous_indexes([str(tmp_path)], 8) == []
    with pytest.raises(UserError, match=r"set corpus\.near_duplicate_similarity as it was there"):
        previous_indexes([str(tmp_path)], 7)


def test_documents_dropped_before_have_no_duplicates(tmp_path: Path, three_of_a_kind: list[str]) -> None:
    short, longest, _, _ = three_of_a_kind
    corpus = Corpus(tmp_path)
    corpus.add([short, longest, short])
    np.save(tmp_path / "gone.npy", np.array([1, 2]))
    (folder,) = corpus.index(left_out=(tmp_path / "gone.npy",))
    assert np.load(folder / "exact.npy")[1].tolist() == [0]
    assert np.load(folder / "bands.npy")[:, 1].tolist() == [[0]] * 14


def test_no_documents_have_no_duplicates(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.add([])
    assert corpus.decisions() == []


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_of_all_shared_texts_only_editions_and_copies_are_joined(tmp_path: Path) -> None:
    """12 books, two of them in two editions, 278 tales and 37 captures, of which three say the same."""
    corpus, places = Corpus(tmp_path), []
    for folder in ("corpus/gutenberg", "corpus/fairytaleqa", "warc"):
        for split in plan_splits([Source(kind="files", path=str(SHARED / folder))], 1):
            documents = [item for item in read_split(split) if isinstance(item, Document)]
            corpus.add([without_license(clean(document.text)) for document in documents])
            places += [document.id.removeprefix(f"{SHARED / folder}:") for document in documents]
    assert len(places) == 12 + 278 + 37
    found = {places[one]: (places[other], status) for one, other, status in corpus.decisions() if status != KEPT}
    assert found == {
        "alice.txt:0": ("alice-older-edition.txt:0", NEAR),
        "grimm-older-edition.txt:0": ("grimm.txt:0", NEAR),
        "sample-0001.warc.gz:78027": ("sample-0001.warc.gz:46426", EXACT),
        "sample-0001.warc.gz:170431": ("sample-0001.warc.gz:46426", EXACT),
    }
