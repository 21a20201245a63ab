"""Counts the documents of a split by their outcome, for `stats.json`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.corpus.filter import histograms
from pipelines.corpus.filter.cache import MeasuredBatch, MeasureSettings
from pipelines.corpus.filter.rules import Bound
from pipelines.corpus.filter.signals import Signals
from pipelines.corpus.read.records import BadRecord, Document
from pipelines.corpus.tasks import Report

# Characters of the example of each rule's dropped documents in stats.json.
_EXAMPLE_CHARACTERS = 200


@dataclass
class Counts:
    """Documents and bytes of a split by outcome; `report` gives them as JSON."""

    found: Counter[str] = field(default_factory=lambda: Counter(documents=0, bytes=0))
    kept: Counter[str] = field(default_factory=lambda: Counter(documents=0, bytes=0))
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)
    personal_data: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    not_judged: Counter[str] = field(default_factory=Counter)

    def add_read(self, batch: MeasuredBatch, settings: MeasureSettings) -> None:
        """Counts documents that were read, their personal data, and their signals in histograms."""
        self.found.update(documents=len(batch.documents), bytes=sum(batch.read_bytes))
        found = {kind: int(batch.signals[f"personal_{kind}"].sum()) for kind in settings.personal_data}
        self.personal_data.update(found)
        for name, bins in histograms.count(batch.signals).items():
            self.histograms[name] = self.histograms.get(name, 0) + bins

    def add_not_judged(self, signals: Signals, rules: Sequence[Bound]) -> None:
        """Counts, by rule, the documents whose signal was not measured (NaN)."""
        for rule in rules:
            if without := int(np.isnan(signals[rule.signal]).sum()):
                self.not_judged[rule.reason] += without

    def add_dropped(self, dropped: Sequence[tuple[Document, str]]) -> None:
        """Counts dropped documents by reason, and keeps the first of each reason as an example."""
        for document, reason in dropped:
            self.dropped[reason] += 1
            self.dropped_bytes[reason] += len(document.text.encode())
            self.examples.setdefault(reason, {"id": document.id, "text": document.text[:_EXAMPLE_CHARACTERS]})

    def add_kept(self, table: pa.Table) -> None:
        """Counts the documents of a part file that is written."""
        self.kept.update(documents=table.num_rows, bytes=sum(table["bytes"].to_pylist()))

    def report(self) -> Report:
        """Returns the counts as JSON, to be added up over splits."""
        return {
            "found": dict(self.found),
            "kept": dict(self.kept),
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_bytes": dict(sorted(self.dropped_bytes.items())),
            "drop_examples": self.examples,
            "personal_data": dict(self.personal_data),
            "histograms": {name: bins.tolist() for name, bins in self.histograms.items()},
            "skipped": dict(sorted(self.skipped.items())),
            "not_judged": dict(sorted(self.not_judged.items())),
            "bad": len(self.bad),
            "first_bad": {bad.file: bad.reason for bad in reversed(self.bad)},
            "unread": [
                {"file": bad.file, "unread_bytes": bad.unread_bytes, "bytes": bad.file_bytes, "reason": bad.reason}
                for bad in self.bad
                if bad.unread_bytes
            ],
        }
