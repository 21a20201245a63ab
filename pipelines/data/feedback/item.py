"""The common form of preference data: a prompt with its answers and their ranks, which every format is read into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from cluster.errors import UserError
from cluster.run.folder import fingerprint

Messages = list[dict[str, str]]
Row = dict[str, Any]


@dataclass(frozen=True)
class PreferenceItem:
    """A prompt, its K answers and their ranks.

    Attributes:
        messages: the prompt.
        texts: [K], the answers.
        ranks: the ranks by annotator [K], 1 is best; None for an answer that the annotator did not rank.
        models: [K], the sources of the answers.
        details: the row's other fields, so that it can be written back.
    """

    messages: Messages
    texts: list[str]
    ranks: dict[str, list[int | None]]
    models: list[str] = field(default_factory=lambda: ["imported", "imported"])
    details: dict[str, Any] = field(default_factory=dict)

    def row(self, columns: Row) -> Row:
        """Returns an exported row: its columns, and the imported row's other fields that have other names."""
        return columns | {name: value for name, value in self.details.get("row", {}).items() if name not in columns}

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yields the indices of the better and the worse answer of every pair, annotator by annotator, without ties."""
        for ranks in self.ranks.values():
            ranked = [(rank, index) for index, rank in enumerate(ranks) if rank is not None]
            for (high, better), (low, worse) in permutations(sorted(ranked), 2):
                if high < low:
                    yield better, worse


def split_of(messages: Messages, held_out_share: float) -> str:
    """Returns train or held_out by a hash of a prompt's messages, so that equal prompts are on one side of the
    split."""
    chance = int(fingerprint(messages)[:12], 16) / 16**12
    return "held_out" if chance < held_out_share else "train"


def text_field(row: Row, key: str, where: str) -> str:
    """Returns a field of a row.

    Raises:
        UserError: it is not text.
    """
    if not isinstance(row.get(key), str):
        raise UserError(f"{where}: {key} must be text")
    return row[key]


def other_fields(row: Row, known: Sequence[str]) -> Row:
    """Returns the fields of a row that are not known."""
    return {key: value for key, value in row.items() if key not in known}
