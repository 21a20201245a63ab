"""The whole stage on Ray: its output, which is the same every time, and how a killed one resumes."""

import hashlib
import json
import random
import shutil
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.corpus import run, stage, tasks
from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.tokens.shards import read_rows
from tests.pipelines.corpus.stage_runs import CONTEXT, build, make_recipe

pytestmark = pytest.mark.slow


def hashes(folder: Path) -> dict[str, str]:
    """Hashes every file of a run but `stats.json`, which holds seconds."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "stats.json"
    }


def line_ids(path: Path) -> list[str]:
    """Returns the ids of the documents of a JSONL file that is a source: each has the byte where its line starts."""
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    return [f"{path}:{path.name}:{start}" for start in accumulate(sizes[:-1], initial=0)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes two files: 150 tales with copies of five, near-copies of ten and three that break a rule; and 40 notes."""
    rng = random.Random(11)
    folder = tmp_path_factory.mktemp("texts")
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(300)]
    tales = [" ".join(rng.choices(vocabulary, k=rng.randint(60, 120))) for _ in range(150)]
    near = [f"{tale} {' '.join(rng.choices(vocabulary, k=3))}" for tale in tales[:10]]
    broken = ["too short", "a b c d e f", "#word #word word word word"]
    lines = [json.dumps({"text": text}) + "\n" for text in tales + tales[20:25] + near + broken]
    (folder / "tales.jsonl").write_text("".join(lines))
    notes = [f"note about <|end|> and {' '.join(rng.choices(vocabulary, k=8))}" for _ in range(39)]
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*notes, notes[0]]))
    return folder


@pytest.fixture(scope="module")
def recipe(texts: Path) -> Recipe:
    return make_recipe(
        {"kind": "files", "path": str(texts / "tales.jsonl")},
        {"kind": "files", "path": str(texts / "notes.jsonl"), "near_duplicates": "keep"},
    )


@pytest.fixture(scope="module")
def built(ray_session: None, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "corpus"
    build(recipe, folder)
    return folder


def test_every_document_is_accounted_for(built: Path) -> None:
    stats = json.loads((built / "stats.json").read_text())
    assert stats["gathered"]["documents"] == 150 + 5 + 10 + 3 + 40
    assert stats["dropped"] == {"too few words": 1, "mean word length": 1, "too many symbols": 1}
    assert stats["kept"]["documents"] == 150 + 5 + 10 + 40
    assert stats["dropped_bytes"] == {"too few words": 9, "mean word length": 11, "too many symbols": 26}
    assert {reason: example["text"] for reason, example in stats["drop_examples"].items()} == {
        "too few words": "too short",
        "mean word length": "a b c d e f",
        "too many symbols": "#word #word word word word",
    }
    assert set(stats["megabytes_per_second"]) == set(stats["seconds"])
    assert stats["steps"]["read"]["megabytes_per_second"] > 0
    # The tokens of documents that were never encoded are estimated by the source's own bytes a token.
    total = {key: stats[f"train_{key}"] + stats[f"held_out_{key}"] for key in ("documents", "bytes", "tokens")}
    assert stats["encoded_documents"] == total["documents"] == 150 + 39
    for source in stats["sources"].values():
        bytes_a_token = sum(source[s]["bytes"] for s in SPLITS) / sum(source[s]["tokens"] for s in SPLITS)
        assert source["gathered"]["tokens"] == pytest.approx(source["gathered"]["bytes"] / bytes_a_token, rel=1e-3)
    assert stats["dropped_tokens"].keys() == stats["dropped"].keys()
    assert stats["duplicates"] == {"exact": 6, "near": 10}
    assert stats["histograms"]["words"]["edges"][:4] == [0, 1, 2, 4]
    assert all(sum(of["counts"]) == 208 for of in stats["histograms"].values())
    assert stats["train_documents"] + stats["held_out_documents"] == 150 + 39
    tales, notes = stats["sources"].values()
    assert tales["duplicates"] == {"exact": 5, "near": 10}
    assert notes["duplicates"] == {"exact": 1, "near": 0}


def test_rows_hold_exactly_the_documents(built: Path) -> None:
    """Every chosen text, encoded, ended and cut at the context, is in the rows of its split, once."""
    stats = json.loads((built / "stats.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(str(built / "tokenizer"), split_special_tokens=True)
    documents = [row for file in (built / "documents").iterdir() for row in pq.read_table(file).to_pylist()]
    for split in ("train", "held_out"):
        table = read_rows(list((built / "shards" / split).iterdir()))
        assert table["row_id"].to_pylist() == list(range(stats[f"{split}_rows"]))
        found = []
        for row in table.to_pylist():
            assert len(row["input_ids"]) == len(row["document_ids"]) == CONTEXT
            for number in range(max(row["document_ids"]) + 1):
                pairs = zip(row["input_ids"], row["document_ids"], strict=True)
                found.append([token for token, document in pairs if document == number])
        texts = [document["text"] for document in documents if document["split"] == split]
        ids = [tokenizer.encode(text) for text in texts]
        ended = [[*document, 0] for document in ids]
        expected = [
            document[start : start + CONTEXT] for document in ended for start in range(0, len(document), CONTEXT)
        ]
        assert sorted(found) == sorted(expected)
        assert stats[f"{split}_tokens"] == sum(map(len, ids))
        assert stats[f"{split}_bytes"] == sum(len(text.encode()) for text in texts)
        padding = stats[f"{split}_rows"] * CONTEXT - sum(map(len, ended))
        assert stats["padding_rate"][split] == round(padding / (stats[f"{split}_rows"] * CONTEXT), 4)
        # The end of text ends each document; the end of turn, though spelt in the notes, is nowhere.
        assert sum(piece.count(0) for piece in found) == len(texts)
        assert not any({1, 2, 3, 4} & set(piece) for piece in found)


def test_nothing_trained_on_is_held_out(built: Path) -> None:
    documents = [row for file in (built / "documents").iterdir() for row in pq.read_table(file).to_pylist()]
    split = {name: {row["text"] for row in documents if row["split"] == name} for name in ("train", "held_out")}
    assert not split["train"] & split["held_out"]
    assert 5 <= len(split["held_out"]) <= 40


def test_rows_are_shuffled_over_the_sources(built: Path) -> None:
    """Notes come last in the recipe; a row of theirs is found in the first half, and of the tales in the second."""
    tokenizer = AutoTokenizer.from_pretrained(str(built / "tokenizer"))
    rows = read_rows(list((built / "shards" / "train").iterdir()))["input_ids"].to_pylist()
    notes = ["note about" in tokenizer.decode(row) for row in rows]
    half = len(notes) // 2
    assert 0 < sum(notes[:half]) < half
    assert 0 < sum(notes[half:]) < len(notes) - half


def test_the_same_input_gives_the_same_bytes_and_is_not_encoded_again(
    built: Path, recipe: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "corpus")
    again = tmp_path / ".partial" / "corpus"
    again.mkdir(parents=True)
    run(recipe, RunFolder(tmp_path), again)
    assert json.loads((again / "stats.json").read_text())["encoded_documents"] == 0
    assert hashes(again) == hashes(built)


def test_a_killed_stage_is_resumed(
    built: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_shards", _killed)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, out)
    assert not (out / "stats.json").exists()
    assert not (out / "shards").exists()
    # A kill in the middle of a phase leaves one part whole, one absent, and one half-written to the side.
    (out / "work" / "prepared" / "part-00001.parquet").unlink()
    (out / "work" / "rows" / "part-00000.train.rows").rename(out / "work" / "rows" / ".part-00000.train.rows.side")
    shutil.rmtree(out / "work" / "assignments")
    first = out / "work" / "prepared" / "part-00000.parquet"
    before = first.stat().st_mtime_ns
    renewed = []
    with monkeypatch.context() as patch:
        original = tasks._execute
        patch.setattr(tasks, "_execute", lambda *given: renewed.append(given[:2]) or original(*given))
        patch.setattr(stage.shutil, "rmtree", lambda *_, **__: None)
        build(recipe, out)
    assert renewed == [
        ("read, clean and filter", [1]),
        ("split", [0, 1]),
        ("tokenize and pack", [0]),
        ("shuffle and shard", [0, 1]),
    ]
    assert first.stat().st_mtime_ns == before
    shutil.rmtree(out / "work")
    for side in out.rglob(".*side"):
        side.unlink()
    assert hashes(out) == hashes(built)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_clusters_name_the_representative_of_every_document(built: Path, texts: Path) -> None:
    rows = pq.read_table(built / "duplicates").to_pylist()
    ids = {row["number"]: row["id"] for row in rows}
    assert Counter(row["status"] for row in rows) == {"exact": 6, "near": 10, "kept": 16}
    # A near-copy is three words longer than its tale, so it stays.
    representatives = {row["id"]: ids[row["representative"]] for row in rows if row["status"] == "near"}
    lines = line_ids(texts / "tales.jsonl")
    assert representatives == {lines[tale]: lines[155 + tale] for tale in range(10)}


def test_a_later_corpus_drops_documents_of_the_first_and_contaminated_ones(
    built: Path, texts: Path, tmp_path: Path
) -> None:
    tales = [json.loads(line)["text"] for line in (texts / "tales.jsonl").read_text().splitlines()]
    rng = random.Random(4)
    fresh = [" ".join("".join(rng.choices("qrstuvwxyz", k=5)) for _ in range(60)) for _ in range(30)]
    asked = " ".join(fresh[3].split()[20:40])
    (tmp_path / "asked.json").write_text(json.dumps([{"id": "Q7", "question": asked}, {"question": "Too short?"}]))
    lines = [*fresh, tales[0], f"{tales[50]} and so on"]
    (tmp_path / "next.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    evaluated = {"files": [str(tmp_path / "asked.json")]}
    source = {"kind": "files", "path": str(tmp_path / "next.jsonl")}
    stats = build(make_recipe(source, previous_corpora=[str(built)], decontaminate=evaluated), tmp_path / "corpus")
    assert stats["in_previous_corpora"] == 2
    assert stats["contamination"] == {
        "documents": 1,
        "action": "drop",
        "n": 13,
        "looked_for": 2,
        "too_short": 1,
        "items": {"asked.json:Q7": 1},
    }
    assert stats["train_documents"] + stats["held_out_documents"] == 29
    (passage,) = pq.read_table(tmp_path / "corpus" / "contamination").to_pylist()
    assert (passage["id"], passage["span"]) == (line_ids(tmp_path / "next.jsonl")[3], asked)
    assert fresh[3][passage["start"] : passage["end"]] == asked


def test_a_finished_stage_is_not_run_again(built: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_build", _killed)
    figures = run(recipe, RunFolder(built.parent), built).metrics
    assert figures["near_duplicates"] == 10
    assert figures["train_rows"] == json.loads((built / "stats.json").read_text())["train_rows"]


def test_few_bad_records_are_quarantined_and_the_others_used(ray_session: None, recipe: Recipe, tmp_path: Path) -> None:
    source = Path(str(recipe.corpus.sources[0].path))
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"{broken\n" + source.read_bytes() + b'{"text": "\xff"}\n')
    out = tmp_path / "corpus"
    rules = {"gopher_quality": {"min_words": 70, "stop_words": 0}, "gopher_repetition": {}}
    given = {"max_bad_share": 0.05, "keep_excluded": True}
    stats = build(make_recipe({"kind": "files", "path": str(path), "license": "CC0-1.0"}, rules=rules, **given), out)
    assert stats["bad"] == 2
    assert stats["gathered"]["documents"] == 168
    assert stats["sources"][str(path)]["license"] == "CC0-1.0"
    (quarantine,) = (out / "quarantine").iterdir()
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [(line["file"], line["offset"]) for line in lines] == [
        (str(path), 0),
        (str(path), 8 + source.stat().st_size),
    ]
    assert lines[1]["excerpt"] == '{"text": "\\xff"}\n'
    excluded = [row for file in (out / "excluded").iterdir() for row in pq.read_table(file).to_pylist()]
    assert {row["reason"]: row["text"] for row in excluded}["too few words"] == "too short"
    assert Counter(row["reason"] for row in excluded) == stats["dropped"]
    assert stats["dropped"]["gopher quality: too few words"] == sum(
        5 <= len(json.loads(line)["text"].split()) < 70 for line in source.read_text().splitlines()
    )

    # Other thresholds: everything is judged again, nothing is read again.
    original = path.read_bytes()
    path.unlink()
    path.write_bytes(original)
    looser = {"gopher_quality": {"min_words": 60, "stop_words": 0}}
    (tmp_path / "next" / "corpus").parent.mkdir()
    shutil.copytree(out, tmp_path / "next" / "corpus")
    again = tmp_path / "next" / ".partial" / "corpus"
    again.mkdir(parents=True)
    looser_recipe = make_recipe({"kind": "files", "path": str(path)}, rules=looser, max_bad_share=0.05)
    run(looser_recipe, RunFolder(tmp_path / "next"), again)
    linked = next((again / "signals").iterdir())
    assert linked.stat().st_ino == (tmp_path / "next" / "corpus" / "signals" / linked.name).stat().st_ino
    after = json.loads((again / "stats.json").read_text())
    assert after["bad"] == 2
    assert all(after["gathered"][key] == stats["gathered"][key] for key in ("documents", "bytes"))
    assert after["dropped"] == {"too few words": 1, "gopher quality: too few words": 2}


def test_weights_set_the_shares_of_the_tokens(ray_session: None, texts: Path, tmp_path: Path) -> None:
    names = [str(texts / "tales.jsonl"), str(texts / "notes.jsonl")]
    sources = [{"kind": "files", "path": name, "weight": weight} for name, weight in zip(names, (1, 1.0), strict=True)]
    stats = build(
        make_recipe(*({**source, "weight": float(source["weight"])} for source in sources)), tmp_path / "corpus"
    )
    tales, notes = (stats["mix"][name] for name in names)
    assert notes["times_read"] == 4
    assert tales["tokens"] == pytest.approx(notes["tokens"], rel=0.2)
    for name in names:
        assert stats["sources"][name]["train"]["tokens"] == stats["mix"][name]["tokens"]
    documents = [
        row for file in (tmp_path / "corpus" / "documents").iterdir() for row in pq.read_table(file).to_pylist()
    ]
    trained = Counter(row["text"] for row in documents if row["split"] == "train" and row["source"] == names[1])
    assert set(trained.values()) == {4}
    assert set(Counter(row["text"] for row in documents if row["split"] == "held_out").values()) == {1}
    assert stats["train_tokens"] == tales["tokens"] + notes["tokens"]
    # Once each, however often they are read.
    assert stats["encoded_documents"] == stats["kept"]["documents"] - sum(stats["duplicates"].values())
