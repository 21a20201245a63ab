"""One prompt of a preference file with its answers and their ranks: what rows of every format are read into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from cluster.errors import UserError

Messages = list[dict[str, str]]
Row = dict[str, Any]


@dataclass(frozen=True)
class PreferenceItem:
    """A prompt, its answers, and what people said of them.

    Attributes:
        ranks: annotator to the rank of each answer, None where they did not rank it. 1 is best.
        models: what gave each answer.
        details: what else the row held, to write it back.
    """

    messages: Messages
    texts: list[str]
    ranks: dict[str, list[int | None]]
    models: list[str] = field(default_factory=lambda: ["imported", "imported"])
    details: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The better and the worse answer of every pair that some annotator does not tie, annotator after annotator."""
        for ranks in self.ranks.values():
            given = [(rank, index) for index, rank in enumerate(ranks) if rank is not None]
            for (high, better), (low, worse) in permutations(sorted(given), 2):
                if high < low:
                    yield better, worse


def text_field(row: Row, key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise UserError(f"{where}: {key} should be text")
    return row[key]


def other_fields(row: Row, known: Sequence[str]) -> Row:
    return {key: value for key, value in row.items() if key not in known}
