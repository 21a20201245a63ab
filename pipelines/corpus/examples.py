"""Trains the recipe's quality classifier on the examples that it names."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from cluster.recipe.corpus import QualityClassifier, Source
from cluster.run.atomic import write_json
from cluster.run.folder import file_fingerprint
from pipelines.corpus.filter.classifier import train
from pipelines.corpus.tasks import Report
from pipelines.corpus.texts import TextReader
from pipelines.data.balance import require_enough

WEIGHTS, REPORT = "weights.npz", "report.json"
# The least examples of each class: with fewer a classifier learns their topics.
_LEAST = 20


def train_classifier(given: QualityClassifier, seed: int, folder: Path) -> tuple[Path, str, Report]:
    """Trains the classifier unless it is there.

    Returns:
        (file, fingerprint, report): its weights, their fingerprint, and how well it tells examples apart that it was
            not trained on.

    Raises:
        UserError: an example cannot be read, or there are too few.
    """
    weights, report = folder / WEIGHTS, folder / REPORT
    if not report.exists():
        folder.mkdir(parents=True, exist_ok=True)
        good = _texts(given.good, given.examples, seed, "good")
        bad = _texts(given.bad, given.examples, seed, "bad")
        classifier, measured = train(good, bad, seed)
        classifier.save(weights)
        write_json(report, measured)
    return weights, file_fingerprint(weights), json.loads(report.read_text(encoding="utf-8"))


def _texts(sources: Sequence[Source], most: int, seed: int, kind: str) -> list[str]:
    """Reads the first texts of the sources, an equal number of each as far as they have them."""
    found: list[str] = []
    reader = TextReader()
    for number, source in enumerate(sources):
        share = -(-(most - len(found)) // (len(sources) - number))
        found += islice(reader.texts([source], seed), share)
    what = f"texts of corpus.classifier.{kind}"
    require_enough(what, len(found), reader.losses(), _LEAST, "to train on", "add sources", reader.besides())
    return found
