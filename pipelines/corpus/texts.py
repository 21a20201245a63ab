"""Reads the cleaned texts of sources that become no corpus: examples of a classifier, the target of an experiment."""

from collections.abc import Iterator, Sequence

from cluster.recipe.corpus import Source
from pipelines.corpus.clean.text import clean, without_license
from pipelines.corpus.read.records import BadRecord, Skipped
from pipelines.corpus.read.sources import plan_splits, read_split
from pipelines.data.balance import Loss


class TextReader:
    """Reads the cleaned texts of sources, and counts the records that give none.

    Attributes:
        bad: records that cannot be read.
        skipped: number of records that hold no document.
        empty: texts of which cleaning leaves nothing.
    """

    def __init__(self) -> None:
        self.bad: list[BadRecord] = []
        self.skipped, self.empty = 0, 0

    def texts(self, sources: Sequence[Source], seed: int) -> Iterator[str]:
        """Yields the texts in the order of the sources."""
        for split in plan_splits(sources, seed):
            for item in read_split(split):
                if isinstance(item, BadRecord):
                    self.bad.append(item)
                elif isinstance(item, Skipped):
                    self.skipped += item.records
                elif text := without_license(clean(item.text)):
                    yield text
                else:
                    self.empty += 1

    def besides(self) -> list[str]:
        """Counts the records that were read beside documents, for `balance`."""
        return [f"{self.skipped:,} records without a document skipped"] if self.skipped else []

    def losses(self) -> list[Loss]:
        """Lists the documents that gave no text so far, for `balance`."""
        fix = f"fix what is wrong, first: {self.bad[0].reason}" if self.bad else ""
        return [
            Loss("cannot be read", len(self.bad), fix),
            Loss("empty", self.empty),
        ]
