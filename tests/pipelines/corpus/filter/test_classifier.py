"""The quality classifier: its objective, how well it tells clean text from polluted, and documents that it drops."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from cluster.recipe.corpus import QualityClassifier, Source
from pipelines.corpus.examples import train_classifier
from pipelines.corpus.filter.cache import MeasureSettings, cache_key
from pipelines.corpus.filter.classifier import area_under_curve, features, load, objective, train
from pipelines.corpus.prepare import PreparePhase
from pipelines.corpus.read.sources import plan_splits
from tests.pipelines.corpus.languages import SENTENCES

OFFERS = ("buy now", "click here", "best price", "free shipping", "limited offer", "sign up today", "add to cart")


def clean_text(draw: random.Random, language: str = "en") -> str:
    return " ".join(draw.sample(SENTENCES[language], 4))


def polluted_text(draw: random.Random) -> str:
    """Returns a text of ordinary sentences and offers, half of each."""
    return " ".join([*draw.sample(SENTENCES["en"], 2), *draw.choices(OFFERS, k=8)])


@pytest.mark.parametrize("seed", range(10))
def test_clean_text_is_ranked_above_polluted_text(seed: int) -> None:
    draw = random.Random(seed)
    good, bad = [clean_text(draw) for _ in range(60)], [polluted_text(draw) for _ in range(60)]
    classifier, report = train(good[:40], bad[:40], seed)
    assert report["good"] == report["bad"] == 40
    assert report["auc"] >= 0.95
    scores = classifier.scores([*good[40:], *bad[40:]])
    assert area_under_curve(scores[:20], scores[20:]) >= 0.95
    assert ((scores >= 0.5) == (np.arange(40) < 20)).mean() >= 0.95


def test_the_gradient_is_that_of_the_loss_and_vanishes_at_the_optimum() -> None:
    draw = random.Random(2)
    examples = features([*(clean_text(draw) for _ in range(12)), *(polluted_text(draw) for _ in range(5))])
    loss = objective(examples, np.repeat([1.0, 0.0], [12, 5]))
    rng = np.random.default_rng(3)
    at = np.append(rng.normal(size=examples.shape[1]), 0.3)
    step = np.append(rng.normal(size=examples.shape[1]) * (examples.sum(axis=0).A1 > 0), 1.0)
    numeric = (loss(at + 1e-5 * step)[0] - loss(at - 1e-5 * step)[0]) / 2e-5
    assert loss(at)[1] @ step == pytest.approx(numeric, rel=1e-6)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order() -> None:
    good, bad = np.array([0.9, 0.5, 0.5, 0.1]), np.array([0.5, 0.2, 0.0])
    pairs = [(one > other) + (one == other) / 2 for one in good for other in bad]
    assert area_under_curve(good, bad) == pytest.approx(np.mean(pairs))


def test_texts_without_words_and_of_every_script_have_features() -> None:
    found = features(["", "→", "one", "孩子们沿着河边走", "One"])
    assert np.diff(found.indptr).tolist() == [0, 0, 1, 8 + 7, 1]
    assert np.allclose([np.sqrt(row.power(2).sum()) for row in found], [0, 0, 1, 1, 1])
    assert (found[2] != found[4]).nnz == 0


def write(path: Path, texts: list[str]) -> Source:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(path=str(path))


def test_documents_of_low_scores_are_dropped_and_counted(tmp_path: Path) -> None:
    draw = random.Random(5)
    good = [write(tmp_path / f"good-{n}.jsonl", [clean_text(draw) for _ in range(30)]) for n in range(2)]
    bad = write(tmp_path / "bad.jsonl", [polluted_text(draw) for _ in range(90)])
    given = QualityClassifier(good=good, bad=[bad], examples=40)
    file, digest, report = train_classifier(given, 1, tmp_path / "classifier")
    assert (report["good"], report["bad"]) == (40, 40)
    changed = file.stat().st_mtime_ns
    assert train_classifier(given, 1, tmp_path / "classifier") == (file, digest, report)
    assert file.stat().st_mtime_ns == changed, "a stage that goes on trains no second classifier"
    source = write(tmp_path / "a.jsonl", [clean_text(draw) if n % 3 else polluted_text(draw) for n in range(60)])
    settings = MeasureSettings(classifier=(file, digest))
    phase = PreparePhase(
        tuple(plan_splits([source], 1)),
        tmp_path / "out",
        tmp_path / "bad",
        5,
        settings,
        min_score=0.5,
        signals=tmp_path / "signals",
    )
    found = phase(0)
    assert found["dropped"] == {"quality classifier": 20}
    assert found["kept"]["documents"] == 40
    assert sum(found["histograms"]["quality_score"]) == 60
    assert load(file, digest).weights.dtype == np.float32
    split = phase.splits[0]
    assert cache_key(split, settings) != cache_key(split, MeasureSettings(classifier=(file, "another")))


def test_few_examples_are_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", ["a text"] * 19 + [" "] * 3)
    with pytest.raises(UserError, match=r"22 texts of corpus\.classifier\.good read, 19 left, and 20 needed.*empty 3"):
        train_classifier(QualityClassifier(good=[few], bad=[few]), 1, tmp_path / "classifier")
