"""The first phase on one split, without Ray: broken input of every kind, and exact counts on real books and pages."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from cluster.recipe.corpus import C4, FineWeb, GopherQuality, GopherRepetition, Rules, Source
from pipelines.corpus.clean.language import identify, known_languages
from pipelines.corpus.clean.text import without_license
from pipelines.corpus.filter.cache import MeasuredBatch, MeasureSettings
from pipelines.corpus.filter.rules import LANGUAGE, TOO_FEW_WORDS
from pipelines.corpus.prepare import PreparePhase, StepTimer, measured_batches
from pipelines.corpus.read.sources import plan_splits
from pipelines.corpus.stage import _require_known
from tests.helpers import SHARED
from tests.pipelines.corpus.read.test_warc import record, write

TALES, BOOKS, CAPTURES = (
    SHARED / "corpus" / "fairytaleqa" / "stories.jsonl.gz",
    SHARED / "corpus" / "gutenberg",
    SHARED / "warc",
)
PUBLISHED = Rules(gopher_quality=GopherQuality(), gopher_repetition=GopherRepetition(), c4=C4(), fineweb=FineWeb())


def prepare(source: Source, out: Path, **given: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the report of every split of a source, and the documents that are left."""
    splits = tuple(plan_splits([source], 1))
    given = {"min_words": 2, "settings": MeasureSettings(), "excluded": out / "excluded", **given}
    phase = PreparePhase(splits, out / "prepared", out / "quarantine", **given)
    reports = [phase(index) for index in range(len(splits))]
    return reports, [row for split in splits for row in pq.read_table(phase.output(split)).to_pylist()]


def total(reports: list[dict[str, Any]], name: str, key: str = "documents") -> int:
    return sum(report[name][key] for report in reports)


def test_broken_records_of_every_kind_are_quarantined_and_the_others_read(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    good = "".join(json.dumps({"text": f"a good line, number {n}"}) + "\n" for n in range(4000)).encode()
    (texts / "a.jsonl").write_bytes(b'{"text": "before it"}\n{broken\n{"text": "after it"}\n')
    (texts / "b.jsonl.gz").write_bytes(gzip.compress(good)[:-2000])
    (texts / "c.jsonl").write_bytes(b'{"text": "no \xff UTF-8"}\n{"text": "all right"}\n')
    with (texts / "d.jsonl").open("wb") as file:
        file.write(b'{"text": "short one"}\n{"text": "')
        file.seek(100_000_000, 1)
        file.write(b'"}\n{"text": "the last"}\n')
    (texts / "e.jsonl.gz").touch()
    (texts / "h.jsonl").touch()
    starts = write(texts / "f.warc.gz", record("page one"), record("page two", wrong_by=9), record("page three"))
    (texts / "g.html").write_bytes(b"<p>another page that stands alone</p>")

    reports, documents = prepare(Source(kind="files", path=str(texts)), tmp_path / "out")
    lines = [
        json.loads(line)
        for file in sorted((tmp_path / "out" / "quarantine").iterdir())
        for line in file.read_text().splitlines()
    ]
    read = [row["id"].removeprefix(f"{texts}:b.jsonl.gz:") for row in documents if ":b.jsonl.gz:" in row["id"]]
    assert [(Path(line["file"]).name, line["offset"]) for line in lines] == [
        ("a.jsonl", 22),
        ("b.jsonl.gz", int(read[-1]) + len(json.dumps({"text": documents[len(read) + 1]["text"]})) + 1),
        ("c.jsonl", 0),
        ("d.jsonl", 22),
        ("e.jsonl.gz", 0),
        ("f.warc.gz", starts[1]),
    ]
    assert "line 2 has 100,000,0" in lines[3]["reason"]
    assert sum(report["bad"] for report in reports) == 6
    assert sum(report["skipped"].get("empty files", 0) for report in reports) == 1
    others = [row["text"] for row in documents if ":b.jsonl.gz:" not in row["id"]]
    assert others == [
        *("before it", "after it", "all right", "short one", "the last", "page one", "page three"),
        "another page that stands alone",
    ]
    assert total(reports, "found") == len(documents) == len(read) + 8
    assert 500 < len(read) < 4000


def test_documents_that_a_rule_drops_are_counted_and_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("é", "two words", "x")))
    (report,), _ = prepare(Source(kind="files", path=str(tmp_path / "a.jsonl")), tmp_path / "out")
    assert report["dropped"] == {TOO_FEW_WORDS: 2}
    assert report["dropped_bytes"] == {TOO_FEW_WORDS: 3}
    assert report["drop_examples"] == {TOO_FEW_WORDS: {"id": f"{tmp_path / 'a.jsonl'}:a.jsonl:0", "text": "é"}}
    # Two of the texts have one word, and one has two; the bins are none, one, two to three words, and so on.
    assert report["histograms"]["words"][:4] == [0, 2, 1, 0]
    assert report["histograms"]["words_with_a_letter"] == [0] * 19 + [3]
    assert set(report["seconds"]) >= {"read", "clean", "measure", "filter", "hash", "write"}
    assert all(0 <= value < 60 for value in report["seconds"].values())


SENTENCES = {
    "en": "The children walked along the river until they came to an old house in the middle of the wood.",
    "de": "Die Kinder gingen den Fluss entlang, bis sie mitten im Wald zu einem alten Haus kamen.",
    "fr": "Les enfants marchaient le long de la rivière jusqu'à une vieille maison au milieu du bois.",
    "el": "Τα παιδιά περπατούσαν κατά μήκος του ποταμού ώσπου έφτασαν σε ένα παλιό σπίτι στη μέση του δάσους.",
    "ja": "子供たちは川に沿って歩き、森の真ん中にある古い家に着きました。",
}


def test_languages_are_identified_and_kept_with_the_document(tmp_path: Path) -> None:
    codes, probabilities = identify([*SENTENCES.values(), "12 34 56", ""])
    assert codes[:5] == list(SENTENCES)
    assert (probabilities[:5] > 0.65).all()
    assert (probabilities[5:] < 0.65).all()
    assert set(SENTENCES) <= set(known_languages())

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES.values()))
    given = {"settings": MeasureSettings(language=True), "signals": tmp_path / "signals", "language_probability": 0.65}
    source = Source(kind="files", path=str(path))
    (report,), documents = prepare(source, tmp_path / "out", languages=("en", "fr"), **given)
    assert [row["text"] for row in documents] == [SENTENCES["en"], SENTENCES["fr"]]
    assert report["dropped"] == {LANGUAGE: 3}
    (measured,) = (tmp_path / "signals").iterdir()
    table = pq.read_table(measured)
    assert table["language"].to_pylist() == list(SENTENCES)
    before = measured.stat().st_mtime_ns
    # Another choice of languages reads nothing again; the threshold is a bound like the others.
    (again,), documents = prepare(source, tmp_path / "out", languages=("de",), **given)
    assert [row["text"] for row in documents] == [SENTENCES["de"]]
    assert measured.stat().st_mtime_ns == before
    assert "read" not in again["seconds"]
    exact = table["language_probability"].to_pylist()[1]
    for least, left in ((exact, 1), (exact + 1e-6, 0)):
        _, documents = prepare(source, tmp_path / "out", languages=("de",), **{**given, "language_probability": least})
        assert len(documents) == left


def test_a_language_that_the_model_lacks_is_a_mistake_in_the_recipe() -> None:
    _require_known(["en", "fr"])
    with pytest.raises(UserError, match=r"corpus\.languages: 'english' is none of .*en, "):
        _require_known(["en", "english"])


@pytest.mark.parametrize(
    ("text", "book"),
    [
        (
            "Header\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nProduced by A\nand B\n\nIt began.\n\n"
            "End of Project Gutenberg's X, by Y\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicense",
            "It began.",
        ),
        ("*** START OF THIS PROJECT GUTENBERG EBOOK A LONG\nTITLE ***\n\nIt began.", "It began."),
        ("Project Gutenberg\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\nIt began.", "It began."),
        ("We read a book of\nProject Gutenberg today.\nEnd of Project Gutenberg's page.", None),
        ("Produced by nobody.\n\nNo book at all.", None),
    ],
)
def test_header_and_license_of_books_are_removed(text: str, book: str | None) -> None:
    assert without_license(text) == (text if book is None else book)


@pytest.mark.skipif(not BOOKS.exists(), reason="the shared books are not here")
def test_the_shared_books_are_read_whole_and_without_their_licenses(tmp_path: Path) -> None:
    reports, documents = prepare(Source(kind="files", path=str(BOOKS)), tmp_path)
    sizes = {row["id"].rsplit(":", 2)[1].removesuffix(".txt"): row["bytes"] for row in documents}
    assert total(reports, "found") == total(reports, "kept") == len(documents) == 12
    assert sum(file.stat().st_size for file in BOOKS.glob("*.txt")) == total(reports, "found", "bytes")
    assert sizes == {
        "alice": 144_237,
        "alice-older-edition": 147_488,
        "andersen": 299_211,
        "blue-fairy-book": 730_246,
        "grimm": 520_533,
        "grimm-older-edition": 520_189,
        "jungle-book": 273_517,
        "just-so-stories": 158_194,
        "peter-pan": 256_898,
        "secret-garden": 429_301,
        "tom-sawyer": 387_669,
        "wizard-of-oz": 207_270,
    }
    assert not any("gutenberg" in row["text"].lower() for row in documents)


@pytest.mark.skipif(not TALES.exists(), reason="the shared tales are not here")
def test_the_shared_tales_are_english_and_few_repeat_themselves(tmp_path: Path) -> None:
    given = {"settings": MeasureSettings(PUBLISHED, language=True), "languages": ("en",), "language_probability": 0.65}
    reports, documents = prepare(Source(kind="files", path=str(TALES)), tmp_path, **given)
    assert (total(reports, "found"), total(reports, "found", "bytes")) == (278, 3_155_828)
    assert reports[0]["dropped"] == {
        "fineweb: repeated lines": 9,
        "gopher repetition: duplicate 5 gram": 13,
        "gopher repetition: duplicate 7 gram": 1,
        "gopher repetition: duplicate line characters": 1,
        "gopher repetition: duplicate lines": 1,
    }
    assert len(documents) == 278 - 25


@pytest.mark.skipif(not CAPTURES.exists(), reason="the shared captures are not here")
def test_the_shared_captures_are_judged_by_the_published_rules(tmp_path: Path) -> None:
    given = {"settings": MeasureSettings(PUBLISHED, language=True), "languages": ("en",), "language_probability": 0.65}
    reports, documents = prepare(Source(kind="files", path=str(CAPTURES)), tmp_path, **given)
    assert total(reports, "found") == 37
    assert sum(report["bad"] for report in reports) == 0
    assert reports[0]["dropped"] == {
        "gopher quality: too few words": 1,
        "gopher repetition: duplicate 5 gram": 2,
        "gopher repetition: duplicate lines": 1,
    }
    assert len(documents) == 37 - 4


def test_batches_are_bounded_by_their_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.corpus.prepare._BATCH_CHARACTERS", 1000)
    texts = [f"number {number} {'word ' * 60}" for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (split,) = plan_splits([Source(path=str(tmp_path / "a.jsonl"))], 1)
    batches = list(measured_batches(split, MeasureSettings(), StepTimer()))
    assert [len(batch.documents) for batch in batches if isinstance(batch, MeasuredBatch)] == [4] * 5
